"""A network of the zoo in the Hugging Face Trainer: python examples/trainer_loop.py [--epochs N]

Needs pip install 'zoo_seg[train]' transformers. A loss of zoo_seg takes logits of any size and labels, as torch's do.
"""

import argparse
from pathlib import Path

import torch
from finetune import draw_data
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

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
        return dict(zip(("pixel_values", "labels"), self.transform(image, torch.from_numpy(label)), strict=True))


class WithLoss(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.loss = model, SegmentationLoss("focal", ignore_index=255)

    def forward(self, pixel_values, labels):
        logits = self.model(pixel_values)
        return {"loss": self.loss(logits, labels).mean, "logits": logits}


torch.manual_seed(0)
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=4)
draw_data(Path("out/data"))
data = open_data("out/data")  # ignore_index is 255
model = zoo_seg.semanticfpn_mobilenetv4_small("camvid", num_classes=data.num_classes)
model.classes, model.palette = data.classes, data.palette
rules = {"mean": model.preprocess.mean, "std": model.preprocess.std, "ignore_index": 255, "scale": (1, 1)}
train = Samples(data, "train", published_transforms((96, 96), **rules))
settings = {"per_device_train_batch_size": 4, "learning_rate": 0.003, "save_strategy": "no", "report_to": "none"}
options = TrainingArguments("out/trainer", num_train_epochs=parser.parse_args().epochs, **settings)
trainer = Trainer(WithLoss(model), options, train_dataset=train)
trainer.train()
print(f"mIoU {measure(model, data).scores['mIoU']:.1f} % on val")
model.save_pretrained("out/trainer")
