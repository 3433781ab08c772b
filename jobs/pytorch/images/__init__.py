"""What PyTorch jobs on images share: the step, augmentation, attacks,
and the trained model as an application sees it."""
