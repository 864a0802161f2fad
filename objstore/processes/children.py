"""Every kind of child by name: what the supervisor forks into. Importing this loads all that they need."""

from objstore.processes import committer, upkeep, worker

committer_main = committer.run
upkeep_main = upkeep.run
worker_main = worker.run
