SEEDS = (0, 1)  # of the run that the fixture `default_run` makes
