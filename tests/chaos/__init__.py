"""The real processes under load while processes are killed and disks are taken away; a manifest says what
must be."""
