"""A network of the zoo in Lightning's loop: python examples/lightning_loop.py [--epochs N]

Needs pip install 'zoo_seg[train]' lightning. A loss of zoo_seg takes logits of any size and labels, as torch's do.
"""

import argparse
from pathlib import Path

import lightning
import torch
from finetune import draw_data
from torch.utils.data import DataLoader, Dataset

import zoo_seg
from zoo_seg.data.layouts import open_data
from zoo_seg.evaluation.measure import measure
from zoo_seg.layers.losses import SegmentationLoss
from zoo_seg.training.transforms import published_transforms


class Samples(Dataset):
    def __init__(self, data, split, transform):
        self.data, self.samples, self.transform = data, data.samples(split), transform

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        path, label = self.data.pair(self.samples[index])
        image = torch.from_numpy(self.data.read_image(path)).permute(2, 0, 1)
        return self.transform(image, torch.from_numpy(label))


class Training(lightning.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model, self.loss = model, SegmentationLoss("lovasz", ignore_index=255)

    def training_step(self, batch):
        return self.loss(self.model(batch[0]), batch[1]).mean

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


torch.manual_seed(0)
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=4)
draw_data(Path("out/data"))
data = open_data("out/data")  # ignore_index is 255
model = zoo_seg.semanticfpn_mobilenetv4_small("camvid", num_classes=data.num_classes)
model.classes, model.palette = data.classes, data.palette
rules = {"mean": model.preprocess.mean, "std": model.preprocess.std, "ignore_index": 255, "scale": (1, 1)}
train = Samples(data, "train", published_transforms((96, 96), **rules))
trainer = lightning.Trainer(max_epochs=parser.parse_args().epochs, logger=False, enable_checkpointing=False)
trainer.fit(Training(model), DataLoader(train, 4, shuffle=True))
print(f"mIoU {measure(model, data).scores['mIoU']:.1f} % on val")
model.save_pretrained("out/lightning")
