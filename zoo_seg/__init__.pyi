"""The names of `zoo_seg`; written by `zoo-seg manifest stub`."""

from zoo_seg import evaluation as evaluation
from zoo_seg import inference as inference
from zoo_seg.errors import ZooSegError as ZooSegError
from zoo_seg.export.loaded import ExportedModel as ExportedModel
from zoo_seg.export.loaded import from_exported as from_exported
from zoo_seg.export.write import export as export
from zoo_seg.factory import build_model as build_model
from zoo_seg.factory import create_model as create_model
from zoo_seg.factory import from_pretrained as from_pretrained
from zoo_seg.inference.predictor import Predictor as Predictor
from zoo_seg.inference.segmentation import Segmentation as Segmentation
from zoo_seg.manifest import Pretrained
from zoo_seg.manifest import Weights as Weights
from zoo_seg.manifest import get_weights as get_weights
from zoo_seg.manifest import list_models as list_models
from zoo_seg.manifest import list_weights as list_weights
from zoo_seg.model import SegmentationModel as SegmentationModel
from zoo_seg.training.finetune import finetune as finetune
from zoo_seg.version import __version__ as __version__

def fcn_resnet50_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on ResNet-50-c, output stride 8."""

fcn_r50_os8 = fcn_resnet50_os8

def fcn_resnet50_os16(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on ResNet-50-c, output stride 16."""

fcn_r50_os16 = fcn_resnet50_os16

def fcn_resnet101_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on ResNet-101-c, output stride 8."""

fcn_r101_os8 = fcn_resnet101_os8

def fcn_resnet101_os16(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on ResNet-101-c, output stride 16."""

fcn_r101_os16 = fcn_resnet101_os16

def fcn_hrnet_w48(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on HRNetV2-W48."""

def fcn_hrnet_w18(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on HRNetV2-W18."""

def fcn_hrnet_w18_small(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on HRNetV2-W18-small."""

def fcn_resnet101_os16_d6(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on ResNet-101-c, dilation 6, output stride 16."""

fcn_r101_os16_d6 = fcn_resnet101_os16_d6

def fcn_resnet101b_os16_d6(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on ResNet-101, dilation 6, output stride 16."""

def fcn_resnet101b_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on ResNet-101, output stride 8."""

def fcn_resnet50_os16_d6(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on ResNet-50-c, dilation 6, output stride 16."""

fcn_r50_os16_d6 = fcn_resnet50_os16_d6

def fcn_resnet50b_os16_d6(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on ResNet-50, dilation 6, output stride 16."""

def fcn_resnet50b_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on ResNet-50, output stride 8."""

def fcn_resnet18_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on ResNet-18-c, output stride 8."""

def fcn_resnet18b_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on ResNet-18, output stride 8."""

def pspnet_resnet50_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """PSPNet on ResNet-50-c, output stride 8."""

pspnet_r50_os8 = pspnet_resnet50_os8

def pspnet_resnet50_os16(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """PSPNet on ResNet-50-c, output stride 16."""

pspnet_r50_os16 = pspnet_resnet50_os16

def pspnet_resnet101_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """PSPNet on ResNet-101-c, output stride 8."""

pspnet_r101_os8 = pspnet_resnet101_os8

def pspnet_resnet101_os16(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """PSPNet on ResNet-101-c, output stride 16."""

pspnet_r101_os16 = pspnet_resnet101_os16

def pspnet_resnet101b_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """PSPNet on ResNet-101, output stride 8."""

def pspnet_resnet50b_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """PSPNet on ResNet-50, output stride 8."""

def pspnet_resnet18_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """PSPNet on ResNet-18-c, output stride 8."""

def pspnet_resnet18b_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """PSPNet on ResNet-18, output stride 8."""

def pspnet_resnet50b_os32(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """PSPNet on ResNet-50, output stride 32."""

def pspnet_resnet50_os32(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """PSPNet on ResNet-50-c, output stride 32."""

pspnet_r50_os32 = pspnet_resnet50_os32

def semanticfpn_resnet50(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """Semantic FPN on ResNet-50-c, output stride 32."""

semantic_fpn_resnet50 = semanticfpn_resnet50
semanticfpn_r50 = semanticfpn_resnet50
semantic_fpn_r50 = semanticfpn_resnet50

def semanticfpn_resnet101(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """Semantic FPN on ResNet-101-c, output stride 32."""

semantic_fpn_resnet101 = semanticfpn_resnet101
semanticfpn_r101 = semanticfpn_resnet101
semantic_fpn_r101 = semanticfpn_resnet101

def deeplabv3_resnet50_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3 on ResNet-50-c, output stride 8."""

deeplabv3_r50_os8 = deeplabv3_resnet50_os8

def deeplabv3_resnet101_os16_mg124(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3 on ResNet-101-c, multi-grid 1, 2, 4, output stride 16."""

deeplabv3_r101_os16_mg124 = deeplabv3_resnet101_os16_mg124

def deeplabv3_resnet101_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3 on ResNet-101-c, output stride 8."""

deeplabv3_r101_os8 = deeplabv3_resnet101_os8

def deeplabv3_resnet101_os16(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3 on ResNet-101-c, output stride 16."""

deeplabv3_r101_os16 = deeplabv3_resnet101_os16

def deeplabv3_resnet50_os16(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3 on ResNet-50-c, output stride 16."""

deeplabv3_r50_os16 = deeplabv3_resnet50_os16

def deeplabv3_resnet101b_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3 on ResNet-101, output stride 8."""

def deeplabv3_resnet50b_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3 on ResNet-50, output stride 8."""

def deeplabv3_resnet18_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3 on ResNet-18-c, output stride 8."""

def deeplabv3_resnet18b_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3 on ResNet-18, output stride 8."""

def deeplabv3plus_resnet50_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3+ on ResNet-50-c, output stride 8."""

deeplabv3plus_r50_os8 = deeplabv3plus_resnet50_os8

def deeplabv3plus_resnet50_os16(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3+ on ResNet-50-c, output stride 16."""

deeplabv3plus_r50_os16 = deeplabv3plus_resnet50_os16

def deeplabv3plus_resnet101_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3+ on ResNet-101-c, output stride 8."""

deeplabv3plus_r101_os8 = deeplabv3plus_resnet101_os8

def deeplabv3plus_resnet101_os16(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3+ on ResNet-101-c, output stride 16."""

deeplabv3plus_r101_os16 = deeplabv3plus_resnet101_os16

def deeplabv3plus_resnet50b_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3+ on ResNet-50, output stride 8."""

def deeplabv3plus_resnet101b_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3+ on ResNet-101, output stride 8."""

def deeplabv3plus_resnet101_os16_mg124(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3+ on ResNet-101-c, multi-grid 1, 2, 4, output stride 16."""

deeplabv3plus_r101_os16_mg124 = deeplabv3plus_resnet101_os16_mg124

def deeplabv3plus_resnet18_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3+ on ResNet-18-c, output stride 8."""

def deeplabv3plus_resnet18b_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3+ on ResNet-18, output stride 8."""

def segformer_mit_b0(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """SegFormer on MiT-B0."""

def segformer_mit_b1(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """SegFormer on MiT-B1."""

def segformer_mit_b2(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """SegFormer on MiT-B2."""

def segformer_mit_b3(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """SegFormer on MiT-B3."""

def segformer_mit_b4(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """SegFormer on MiT-B4."""

def segformer_mit_b5(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """SegFormer on MiT-B5."""

def upernet_resnet101_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """UPerNet on ResNet-101-c, output stride 8."""

upernet_r101_os8 = upernet_resnet101_os8

def upernet_resnet101_os16(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """UPerNet on ResNet-101-c, output stride 16."""

upernet_r101_os16 = upernet_resnet101_os16

def upernet_resnet50_os16(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """UPerNet on ResNet-50-c, output stride 16."""

upernet_r50_os16 = upernet_resnet50_os16

def upernet_resnet101(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """UPerNet on ResNet-101-c."""

upernet_r101 = upernet_resnet101

def upernet_resnet50_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """UPerNet on ResNet-50-c, output stride 8."""

upernet_r50_os8 = upernet_resnet50_os8

def upernet_resnet50(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """UPerNet on ResNet-50-c."""

upernet_r50 = upernet_resnet50

def upernet_resnet18(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """UPerNet on ResNet-18-c."""

def upernet_convnext_xlarge(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """UPerNet on ConvNeXt-XL."""

def upernet_convnext_large(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """UPerNet on ConvNeXt-L."""

def upernet_convnext_base(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """UPerNet on ConvNeXt-B."""

def upernet_swin_large_window12(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """UPerNet on Swin-L, windows of 12."""

def upernet_swin_large(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """UPerNet on Swin-L."""

def upernet_swin_base_window12(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """UPerNet on Swin-B, windows of 12."""

def upernet_swin_base(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """UPerNet on Swin-B."""

def upernet_convnext_small(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """UPerNet on ConvNeXt-S."""

def upernet_swin_small(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """UPerNet on Swin-S."""

def upernet_convnext_tiny(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """UPerNet on ConvNeXt-T."""

def upernet_swin_tiny(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """UPerNet on Swin-T."""

def upernet_beit_base(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """UPerNet on BEiT-B."""

def upernet_beit_large(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """UPerNet on BEiT-L."""

def ocrnet_resnet101_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """OCRNet on ResNet-101-c, output stride 8."""

ocrnet_r101_os8 = ocrnet_resnet101_os8

def ocrnet_hrnet_w48(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """OCRNet on HRNetV2-W48."""

def ocrnet_resnet50_os8(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """OCRNet on ResNet-50-c, output stride 8."""

ocrnet_r50_os8 = ocrnet_resnet50_os8

def ocrnet_hrnet_w18(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """OCRNet on HRNetV2-W18."""

def ocrnet_hrnet_w18_small(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """OCRNet on HRNetV2-W18-small."""

def ddrnet_23(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DDRNet-23."""

def ddrnet_23_slim(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DDRNet-23-slim."""

def semanticfpn_mobilenetv4_small(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """Semantic FPN on MobileNetV4-Conv-Small."""

semantic_fpn_mobilenetv4_small = semanticfpn_mobilenetv4_small

def pidnet_small(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """PIDNet-S."""

def pidnet_medium(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """PIDNet-M."""

def pidnet_large(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """PIDNet-L."""

def mask2former_resnet50(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """Mask2Former on ResNet-50."""

mask2former_r50 = mask2former_resnet50

def mask2former_swin_tiny(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """Mask2Former on Swin-T."""

def mask2former_swin_small(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """Mask2Former on Swin-S."""

def mask2former_swin_base_window12(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """Mask2Former on Swin-B, windows of 12."""

def mask2former_swin_large_window12(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """Mask2Former on Swin-L, windows of 12."""

def maskformer_swin_base_window12(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """MaskFormer on Swin-B, windows of 12."""

def maskformer_swin_large_window12(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """MaskFormer on Swin-L, windows of 12."""

def fcn_resnet50(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on ResNet-50, torchvision's head, output stride 8."""

fcn_r50 = fcn_resnet50

def fcn_resnet101(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """FCN on ResNet-101, torchvision's head, output stride 8."""

fcn_r101 = fcn_resnet101

def deeplabv3_resnet50(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3 on ResNet-50, torchvision's head, output stride 8."""

deeplabv3_r50 = deeplabv3_resnet50

def deeplabv3_resnet101(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3 on ResNet-101, torchvision's head, output stride 8."""

deeplabv3_r101 = deeplabv3_resnet101

def deeplabv3_mobilenet_v3_large(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DeepLabV3 on MobileNetV3-Large."""

def lraspp_mobilenet_v3_large(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """LR-ASPP on MobileNetV3-Large."""

def eomt_dinov2_large(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """EoMT on DINOv2-L."""

def dpt_vit_large(
    pretrained: Pretrained = None, *, num_classes: int | None = None, in_chans: int = 3, progress: bool = True
) -> SegmentationModel:
    """DPT on ViT-L."""
