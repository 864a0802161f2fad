"""Where the parts meet: `objstore serve` as a supervisor, a committer, workers and an upkeep process."""
