"""What operators type. Nothing heavy is imported before a command needs it: `objstore --help` is quick."""
