"""Many prompts: jobs out of a file, workers that make them, a journal that a kill does not lose, one output a job."""
