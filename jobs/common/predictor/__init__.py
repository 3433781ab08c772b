"""What answers by an artifact: the methods of a job's predictor, how it is found, and what jobs may build theirs of."""
