"""Real S3 clients, as users install them, against a running server."""
