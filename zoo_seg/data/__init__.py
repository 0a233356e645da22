"""A data set: which stored value is which class, which mask belongs to which image, whether all is sound."""

from zoo_seg.data.labels import Labels
from zoo_seg.data.layouts import SegmentationData, open_data
from zoo_seg.data.samples import Sample

__all__ = ["Labels", "Sample", "SegmentationData", "open_data"]
