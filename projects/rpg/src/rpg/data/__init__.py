"""Data sets: names and places in `names` (no torch), images in `images`, folders in `folder`, joints in `pose`, depth
and normals in `dense`; augmentation and corruptions beside them."""
