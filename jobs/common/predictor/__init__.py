"""What answers by an artifact: the methods of a job's predictor, how a predictor is found, and what jobs may build theirs of."""
