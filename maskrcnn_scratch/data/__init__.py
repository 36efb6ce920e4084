"""Data sets, image files, annotation formats, augmentation and batches."""
