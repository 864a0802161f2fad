"""Measures any S3 endpoint beside the machine's own floor. Start with compare.py; knows nothing of
objstore's inside."""
