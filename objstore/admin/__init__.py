"""The admin port: health, metrics, and the API behind the `objstore` command."""
