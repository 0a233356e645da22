"""Arguments of every verb, and one place that turns an exception into a message and an exit code.

A verb is the module of its name beside this one, imported when it is called: `list`, `info`,
`download` and `verify` never load torch.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import zoo_seg
from zoo_seg.errors import OptionError, UnknownNameError, ZooSegError
from zoo_seg.manifest import LARGEST_SIDE
from zoo_seg.training.settings import ELSEWHERE, Settings

_EPILOG = """\
environment:
  ZOO_SEG_HOME      where downloaded weights are kept (default ~/.cache/zoo_seg)
  ZOO_SEG_MIRROR    a folder or http(s) address where weights are looked up by file name first
  ZOO_SEG_OFFLINE   1: never use the network
  ZOO_SEG_MANIFEST  further manifests of your own weights

exit code: 0 done, 1 the work failed, 2 wrong usage
"""


_PACKAGED = "the model's first; without --model the small network for street scenes that comes with the package"


class _Parser(argparse.ArgumentParser):
    """Names the verb's own help in a usage error, and what an unknown option may have meant."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            known = {flag[2:]: flag for flag in self._option_string_actions if flag.startswith("--")}
            name = unknown[0].lstrip("-").partition("=")[0]
            hint = ELSEWHERE.get(name.replace("-", "_"), name).replace("_", "-")
            close = [hint] if hint in known else difflib.get_close_matches(hint, known, cutoff=0.75)
            message = f"unrecognized arguments: {' '.join(unknown)}"
            if unknown[0].startswith("-") and close:
                message += f"; did you mean {' or '.join(known[each] for each in close)}?"
            self.error(message)
        return found, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\ntry '{self.prog} --help'\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return its exit code: 0 done, 1 the work failed, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    try:  # the import as well: it names the extra that is missing
        verb = importlib.import_module(f"zoo_seg.cli.{arguments.verb.replace('-', '_')}")
        code: int = verb.run(arguments)
        sys.stdout.flush()
        return code
    except (OptionError, UnknownNameError) as error:
        return _fail(error, 2)
    except (ZooSegError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # `zoo-seg list | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted; run the same command again to go on", 130)
    except Exception as error:  # memory that ran out, a device that failed, or a mistake of ours
        text = " ".join(str(error).split())
        return _fail(f"unexpected {type(error).__name__}: {text[:500]}", 1)


def _fail(message: object, code: int) -> int:
    print(f"zoo-seg: error: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="zoo-seg",
        description="Published semantic segmentation networks: find, fetch and use them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"zoo_seg {zoo_seg.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    _add_list(verbs)
    _add_info(verbs)
    _add_download(verbs)
    _add_verify(verbs)
    _add_manifest(verbs)
    _add_check_data(verbs)
    _add_convert_data(verbs)
    _add_predict(verbs)
    _add_evaluate(verbs)
    _add_finetune(verbs)
    _add_export(verbs)
    _add_push(verbs)
    _add_demo(verbs)
    return parser


def _verb(
    verbs: Any,
    name: str,
    summary: str,
    description: str = "",
    examples: str = "",
    parents: Sequence[argparse.ArgumentParser] = (),
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        parents=parents,
        help=summary,
        description=textwrap.fill(description or summary[0].upper() + summary[1:] + ".", 100),
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


# --- options of several verbs: parents of their parsers ------------------------------------------


def _network_options(default: str, use: str = "", model: str = "a model name") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--model", metavar="NAME", help=f"{model}; not needed where --weights is an id or a folder")
    parser.add_argument(
        "--weights",
        metavar="W",
        help=f"{use}a tag (ade20k), an id (model.tag), a path, a folder that finetune wrote, or an https:// or hf:// "
        f"link (default: {default})",
    )
    return parser


def _device_option(default: str = "cuda where there is one") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--device", metavar="NAME", help=f"cpu, cuda, cuda:1, mps (default: {default})")
    return parser


def _layout_option(*flags: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        *flags,
        metavar="NAME",
        default="auto",
        help="how the files lie in the folder of the data: folder, coco_json, labelme, cvat, or a data set such as voc "
        "(default: found out)",
    )
    parser.add_argument(
        "--val-fraction", type=float, metavar="F", help="hold so much back as val where there is none, such as 0.2"
    )
    parser.add_argument(
        "--mask-suffix", metavar="TEXT", help="what names of masks have more than those of images (default: found out)"
    )
    return parser


def _test_options() -> argparse.ArgumentParser:
    """How an image is predicted."""
    parser = _device_option()
    parser.add_argument(
        "--mode",
        choices=["whole", "slide", "split"],
        help="whole images, a sliding window, or as few windows as cover the image (default: as published)",
    )
    parser.add_argument(
        "--crop", nargs=2, type=_whole, metavar=("H", "W"), help="the window (default: the training crop)"
    )
    parser.add_argument("--stride", nargs=2, type=_whole, metavar=("H", "W"), help="default: two thirds of the window")
    parser.add_argument(
        "--scales", nargs="+", type=float, metavar="S", help="average over these scales (default: as published)"
    )
    parser.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        help="average with the mirrored image (default: as published)",
    )
    parser.add_argument(
        "--resize",
        type=_resize,
        default="published",
        metavar="SIZE",
        help="'published' (the weights' test size), 'none', or pixels for the shorter side",
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="to compute in")
    parser.add_argument("--compile", action="store_true", help="torch.compile; pays with many images of one size")
    return parser


def _add_list(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "list",
        "show the published weights as a table",
        examples="  zoo-seg list --dataset ade20k --best\n  zoo-seg list --model 'pspnet*' --json",
    )
    parser.add_argument("--model", metavar="NAME", help="a model name, alias or pattern such as 'pspnet*'")
    parser.add_argument("--dataset", metavar="NAME", help="such as voc, ade20k or cityscapes")
    parser.add_argument("--source", metavar="NAME", help="ssseg, mmseg, transformers or torchvision")
    parser.add_argument("--min-miou", type=float, metavar="PERCENT", help="at least this published single-scale mIoU")
    parser.add_argument("--max-parameters", type=float, metavar="MILLIONS", help="at most so many million parameters")
    parser.add_argument("--max-gmacs", type=float, metavar="BILLIONS", help="at most so many billion multiply-adds")
    parser.add_argument("--max-seconds", type=float, metavar="SECONDS", help="at most so many for a prediction")
    parser.add_argument(
        "--best", action="store_true", help="only those that no other of the data set beats in mIoU at less cost"
    )
    parser.add_argument(
        "--sort",
        choices=["miou", "parameters", "gmacs", "seconds", "dataset", "model", "source"],
        help="order of the rows",
    )
    parser.add_argument("--json", action="store_true", help="print everything known about each as JSON")


def _add_info(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "info",
        "show everything known about one set of weights",
        examples="  zoo-seg info pspnet_resnet50_os8.ade20k\n  zoo-seg info pspnet_r50_os8",
    )
    parser.add_argument("id", metavar="ID", help="'model.tag' as listed, or a model name for its architecture and tags")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")


def _add_download(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "download",
        "fetch weights into the cache, or into a folder for machines without network",
        "Fetch and verify weights. With --to the files are put into a folder that serves as ZOO_SEG_MIRROR.",
        "  zoo-seg download pspnet_resnet50_os8.ade20k\n  zoo-seg download --all --to /media/stick/zoo",
    )
    parser.add_argument("ids", nargs="*", metavar="ID", help="'model.tag' as listed")
    parser.add_argument("--all", action="store_true", help="all published weights")
    parser.add_argument("--to", type=_path, metavar="DIR", help="put the files here instead of into the cache")


def _add_verify(verbs: Any) -> None:
    _verb(
        verbs,
        "verify",
        "hash everything in the cache again",
        "Hash every cached file again. A damaged one is set aside as <name>.damaged, and fetched again at its next "
        "use; the exit code is 1 then.",
    )


def _add_manifest(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "manifest",
        "for maintainers: ask the links of a manifest, and record what is behind them",
        "",
        "  zoo-seg manifest check\n"
        "  zoo-seg manifest pin semanticfpn_resnet50.voc_ssseg\n"
        "  zoo-seg manifest digest original.pth mirror.safetensors\n"
        "  zoo-seg manifest stub > zoo_seg/__init__.pyi",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = _verb(
        actions,
        "check",
        "ask every link without downloading (HEAD); exit code 1 when some weights have no link that answers",
    )
    check.add_argument("--timeout", type=float, default=20.0, metavar="S", help="seconds for each answer (default 20)")
    check.add_argument("--json", action="store_true", help="print the answers as JSON")
    pin = _verb(
        actions,
        "pin",
        "download weights and record size, sha256 and the digest of their tensors",
        "Download weights from their published links and write size, sha256 and tensors_sha256 into the manifest where "
        "they are null or missing; nothing else in the file changes. Says whether the digits in the publisher's file "
        "name hold. What is recorded already is enforced, never replaced.",
    )
    for action in (check, pin):
        action.add_argument("ids", nargs="*" if action is check else "+", metavar="ID", help="'model.tag' as listed")
        action.add_argument("--manifest", type=_path, metavar="FILE", help="default: the library's own")
    digest = _verb(
        actions,
        "digest",
        "print the digest of the tensors in weight files; exit code 1 when they differ",
        "Print sha256 and the digest of the tensors, which is the same for a .pth and its safetensors copy: two files "
        "with one digest hold the same network.",
    )
    digest.add_argument(
        "--model",
        metavar="ID",
        help="'model.tag' or a model name: digest the tensors in the form in which the network has them, as a manifest "
        "records them; without it, as they stand in the file",
    )
    digest.add_argument("files", nargs="+", type=_path, metavar="FILE", help=".pth or .safetensors")
    _verb(
        actions,
        "stub",
        "print zoo_seg/__init__.pyi",
        "Print the names of zoo_seg by the library's own manifest, for editors and type checkers: the text of "
        "zoo_seg/__init__.pyi.",
    )


def _add_check_data(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "check-data",
        "read a whole data set and report what training would stumble over",
        "Read every image and mask of a data set: your own (images/train/NAME.jpg, masks/train/NAME.png, the same "
        "below val/, and dataset.json with the classes), COCO's or labelme's JSON, CVAT's masks, or VOC, ADE20K and "
        "Cityscapes as distributed. Prints what the masks hold, and which files are missing, broken or do not fit. "
        "Exit code 1 when training would fail.",
        "  zoo-seg check-data my_data/\n  zoo-seg check-data VOCdevkit/VOC2012 --split train --split val",
        parents=[_layout_option("--layout")],
    )
    parser.add_argument("data", type=_path, metavar="DIR", help="the folder of the data set")
    parser.add_argument("--split", action="append", metavar="NAME", help="check this part only; may be repeated")
    parser.add_argument("--workers", type=_whole, metavar="N", help="threads that read (default: two a processor)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_convert_data(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "convert-data",
        "write a data set of any kind as images, masks and dataset.json",
        "Write the images (as links to the same files where the disk can) and their labels as PNGs of class ids, with "
        "dataset.json. OUT is there when all is done; interrupted, the same command goes on in OUT.unfinished.",
        "  zoo-seg convert-data labelled_in_coco/ my_data/\n"
        "  zoo-seg convert-data images_and_masks/ my_data/ --mask-suffix _L --val-fraction 0.2",
        parents=[_layout_option("--layout")],
    )
    parser.add_argument("data", type=_path, metavar="SRC", help="see 'zoo-seg check-data --help'")
    parser.add_argument("out", type=_path, metavar="OUT", help="a new folder")


def _add_finetune(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "finetune",
        "train a network on your own data",
        "Train on the train split of a data set and measure on its val split after every epoch. --out receives the "
        "best network (use it with --weights DIR), the log, a curve, what --resume goes on from, and what 'evaluate' "
        "writes of val. Several processes: torchrun --nproc_per_node N -m zoo_seg finetune ...",
        "  zoo-seg finetune --data my_data/ --model pspnet_resnet50_os8 --weights ade20k --out runs/mine\n"
        "  zoo-seg finetune --data my_data/ --model semanticfpn --backbone mobilenetv4_conv_small --out runs/small \\\n"
        "      --epochs 100 --optimizer adamw --lr 0.002 --crop-size 360 480",
        parents=[
            _network_options("random weights", "what to start from: ", "a model name, or a family with --backbone"),
            _device_option("the fastest that is there"),
            _layout_option("--layout"),
        ],
    )
    parser.add_argument("--data", required=True, type=_path, metavar="DIR", help="see 'zoo-seg check-data --help'")
    parser.add_argument("--out", required=True, type=_path, metavar="DIR", help="a new folder to write to")
    parser.add_argument("--backbone", metavar="NAME", help="a timm model in place of the model's own, not pretrained")
    parser.add_argument("--backbone-pretrained", action="store_true", help="fetch timm's ImageNet weights for it")
    parser.add_argument("--channels", type=_whole, metavar="N", help="width of the head of a network without weights")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with an interrupted run, to the very same end, or with a finished one that now has more --epochs",
    )
    parser.add_argument(
        "--log-with",
        nargs="+",
        metavar="NAME",
        help="where to log beside log.jsonl and TensorBoard: wandb, mlflow, ... (their packages must be installed)",
    )
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="processes that read images; 0: this one does (default 2)"
    )
    recipe = parser.add_argument_group("the recipe", "What decides the result; with --resume all must be as before.")
    hints = get_type_hints(Settings)
    for each in fields(Settings):
        _add_setting(recipe, each.name, hints[each.name], each.default, each.metadata["help"])


def _add_push(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "push",
        "put a network on the Hugging Face Hub",
        "Write a network, its description and a model card into a repository of the Hugging Face Hub, which is made "
        "where it does not exist. The card tells the measured numbers with their protocol, the recipe and the "
        "licences; one that you have changed in DIR goes along as it is. Credentials are those of 'hf auth login', or "
        "HF_TOKEN.",
        "  zoo-seg push runs/mine org/my-network --private\n"
        "  zoo-seg push pspnet_resnet50_os8.ade20k org/pspnet-ade20k\n"
        "  zoo-seg push my.pth org/my-network --model fcn_resnet50_os8",
    )
    parser.add_argument(
        "weights", type=_path, metavar="DIR|ID", help="a folder that finetune wrote, an id (model.tag), or a file"
    )
    parser.add_argument("repository", metavar="ORG/REPO", help="where to put it")
    parser.add_argument("--model", metavar="NAME", help="a model name, for a file or a link without description")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", metavar="NAME", help="the branch to write to (default main)")
    parser.add_argument("--example", type=_path, metavar="IMAGE", help="shown on the card under the network's colours")


def _add_demo(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "demo",
        "look at images through the networks, in a page of your browser",
        "Serve a web page on this machine: drop an image, choose weights, see the classes, compare two networks, and "
        "download the mask. It works without network, but for weights that are not there yet. It needs "
        "pip install 'zoo_seg[demo]'.",
        "  zoo-seg demo\n  zoo-seg demo --weights runs/mine --port 8000 --open",
        parents=[
            _network_options(
                "the small network for street scenes that comes with the package", "what the page begins with: "
            ),
            _device_option(),
        ],
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="NAME", help="default 127.0.0.1: this machine alone")
    parser.add_argument("--port", type=_port, default=7860, metavar="N", help="default 7860")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="answer to this name as well, such as that of a proxy in front; may be given several times",
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: a whole number from 1 to 65535")
    return int(text)


def _add_setting(parser: argparse._ArgumentGroup, name: str, kind: Any, default: Any, text: str) -> None:
    """An option for a field of `Settings`, by its type."""
    flag = "--" + name.replace("_", "-")
    if default is not None and kind is not bool:
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text = f"{text} (default {shown})"
    if name == "class_weights":
        parser.add_argument(flag, nargs="+", action=_ClassWeights, metavar="W", default=default, help=text)
    elif kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
    elif get_origin(kind) is Literal:
        parser.add_argument(flag, choices=get_args(kind), default=default, help=text)
    elif get_origin(kind) is tuple:
        metavar = ("H", "W") if name == "crop_size" else ("FROM", "TO")
        parser.add_argument(flag, nargs=2, type=get_args(kind)[0], metavar=metavar, default=default, help=text)
    else:
        number = next((each for each in get_args(kind) if each is not type(None)), kind)
        metavar_ = "N" if number is int else "X"
        parser.add_argument(flag, type=number, metavar=metavar_, default=default, help=text)


class _ClassWeights(argparse.Action):
    """A word, or a number for each class."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        words = "none", "balanced"
        try:
            found = values[0] if len(values) == 1 and values[0] in words else tuple(map(float, values))
        except ValueError:
            raise argparse.ArgumentError(
                self, f"{' '.join(values)!r} is not {' or '.join(words)}, nor a number for each class"
            ) from None
        setattr(namespace, self.dest, found)


def _path(text: str) -> str:
    """Refuses what an unset variable of a script leaves, which Path would take for the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; write . for the current folder")
    return text


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _resize(text: str) -> int | str | None:
    if text in ("published", "none"):
        return None if text == "none" else text
    if _whole(text) > LARGEST_SIDE:
        raise argparse.ArgumentTypeError(f"{text} is more pixels than an image's side may have, {LARGEST_SIDE}")
    return int(text)


def _add_predict(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "predict",
        "write the class maps of images",
        "Write <stem>_mask.png (a palette PNG of class ids) and <stem>_overlay.png for each image, under the "
        "image's folder below --out; with --save also <stem>_confidence.png, <stem>.geojson, <stem>.json for labelme, "
        "and one coco.json of all images. GeoTIFFs of any size become <stem>_mask.tif, <stem>_confidence.tif and a "
        "<stem>.geojson on the map. What is there already is kept while image, weights and settings are the "
        "same; a file of your own is never replaced. A broken or missing image is named and passed over, and "
        "the exit code is 1 then. Of a folder every image is taken, links to images included; links to folders "
        "and hidden files are passed over. Of a clip one overlay is written, without sound; it needs "
        "pip install 'zoo_seg[video]'. With --engine ray the workers of a Ray cluster share the images; a PATH may "
        "then be a URL that fsspec knows (s3://...), a list may hold URLs, and --out be a URL; it needs "
        "pip install 'zoo_seg[scale]'.",
        "  zoo-seg predict street.jpg\n"
        "  zoo-seg predict street.jpg --model pspnet_resnet50_os8 --weights ade20k --out out/\n"
        "  zoo-seg predict images/ 'more/*.png' --weights fcn_resnet101_os8.cityscapes --out out/ --dtype bfloat16\n"
        "  zoo-seg predict images/ --save mask,confidence,coco,geojson --min-area 50 --tolerance 1\n"
        "  zoo-seg predict scene.tif --crop 512 512 --save mask,geojson\n"
        "  zoo-seg predict clip.mp4 --out clip_overlay.mp4\n"
        "  zoo-seg predict s3://bucket/images --engine ray --address auto --out s3://bucket/masks",
        parents=[_network_options(_PACKAGED), _test_options()],
    )
    parser.add_argument(
        "paths",
        nargs="+",
        type=_path,
        metavar="PATH",
        help="images, folders, globs and lists (.txt, a path on each line); or one clip",
    )
    parser.add_argument(
        "--out", default="out", type=_path, metavar="DIR", help="where to write (default out); or CLIP.mp4"
    )
    parser.add_argument(
        "--backend",
        choices=["torch", "openvino", "auto"],
        help="what computes on a CPU: openvino suits small networks, auto measures it once; they need "
        "pip install 'zoo_seg[openvino]' (default: torch, or the runtime of an exported file)",
    )
    parser.add_argument(
        "--range",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="the values that are black and white in images of more than 8 bits, such as 0 4095 (default: as trained)",
    )
    parser.add_argument(
        "--bands",
        nargs="+",
        type=_whole,
        metavar="N",
        help="which bands of an image are the network's channels, from 1 on, such as 4 1 2 (default: as trained)",
    )
    parser.add_argument(
        "--batch-size", type=_whole, metavar="N", help="images of one size at a time (default 1; a clip on a GPU: 8)"
    )
    parser.add_argument("--alpha", type=float, default=0.5, help="how much of the colours in the overlay, 0 to 1")
    parser.add_argument("--legend", action="store_true", help="class names and areas beside the overlay")
    parser.add_argument(
        "--save",
        metavar="KINDS",
        help="what to write, with commas between: mask, overlay, confidence, coco, geojson, labelme; of a clip mask, "
        "overlay, confidence (default: mask,overlay; of a clip overlay); coco, geojson and labelme need "
        "pip install 'zoo_seg[results]'",
    )
    parser.add_argument("--no-overlay", action="store_true", help="write the masks only: --save mask")
    parser.add_argument(
        "--min-area", type=float, metavar="N", help="leave out polygons of fewer pixels (default: write all)"
    )
    parser.add_argument(
        "--tolerance", type=float, metavar="PX", help="simplify the borders of polygons (default 0: pixel by pixel)"
    )
    parser.add_argument("--overwrite", action="store_true", help="do again what an earlier run did")
    parser.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="this process (default), or a Ray cluster"
    )
    parser.add_argument(
        "--workers", type=_whole, metavar="N", help="of the cluster (default: one for every GPU, or for four cores)"
    )
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="of the cluster; auto: the one that runs here (default: start one here)"
    )
    parser.add_argument("--json", metavar="FILE", help="what is done, kept and failed, and why, as JSON; - for stdout")


def _add_export(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "export",
        "write a network for ONNX Runtime, OpenVINO or torch.export",
        "Write a network as a file for another runtime, for any batch, height and width, run it there at three sizes, "
        "and compare with the network; a file that computes something else is not left. 'zoo-seg predict' takes the "
        "file in place of a network.",
        "  zoo-seg export --weights pspnet_resnet50_os8.ade20k --out pspnet.onnx\n"
        "  zoo-seg export --weights runs/mine --out mine.xml --preprocess --argmax --dtype float16\n"
        "  zoo-seg export --weights runs/mine --out mine.xml --dtype int8 --calibration data/mine\n"
        "  zoo-seg predict street.jpg --weights pspnet.onnx",
        parents=[_network_options(_PACKAGED)],
    )
    parser.add_argument(
        "--out", required=True, type=_path, metavar="FILE", help="ends in .onnx, .xml (OpenVINO) or .pt2 (torch.export)"
    )
    parser.add_argument(
        "--format", choices=["onnx", "openvino", "torch_export"], help="default: as the ending of --out says"
    )
    parser.add_argument(
        "--preprocess", action="store_true", help="normalise in the graph: it takes uint8 (RGB) images (N, H, W, C)"
    )
    parser.add_argument(
        "--argmax", action="store_true", help="choose the class in the graph: it gives class ids (N, H, W)"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16", "int8"],
        default="float32",
        help="float16 halves the file; int8 quarters it and is faster (ONNX, OpenVINO; needs --calibration)",
    )
    parser.add_argument(
        "--calibration",
        metavar="DIR",
        help="for int8: a folder of images like those to be predicted, or a data set, whose labels give the mIoU lost",
    )
    parser.add_argument(
        "--calibration-images",
        type=_whole,
        default=200,
        metavar="N",
        help="calibrate with at most N images, and compare on at most N others (default 200)",
    )
    parser.add_argument("--opset", type=_whole, metavar="N", help="ONNX's, 18 to 23 (default 18)")
    parser.add_argument("--no-check", action="store_false", dest="check", help="do not compare with the network")


def _add_evaluate(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "evaluate",
        "measure weights on a data set, beside their published number",
        "Predict a split of a data set under the protocol that the weights' number was reported for, compare with the "
        "labels and print the scores of every class, and the reported and the measured mIoU. --out receives "
        "evaluation.json, the chart iou.png, the confusion matrix (confusion.csv, confusion.png), the scores of each "
        "image (images.csv) and the worst ones beside their labels (worst.png). The exit code is 1 when the whole "
        "split gives a number that is further from the reported one than the tolerance.",
        "  zoo-seg evaluate --model pspnet_resnet50_os8 --weights voc --data VOCdevkit/VOC2012\n"
        "  zoo-seg evaluate --weights semanticfpn_resnet50.ade20k_mmseg --data ADEChallengeData2016 \\\n"
        "      --scales 0.5 0.75 1 1.25 1.5 1.75 --flip --dtype bfloat16",
        parents=[
            _network_options("the model's first"),
            _test_options(),
            _layout_option("--dataset", "--layout"),
        ],
    )
    parser.add_argument("--data", required=True, type=_path, metavar="DIR", help="the data set's folder")
    parser.add_argument("--split", default="val", metavar="NAME", help="the part to measure (default val)")
    parser.add_argument("--out", type=_path, metavar="DIR", help="where to write (default evaluation/<id>_<protocol>)")
    parser.add_argument(
        "--tolerance", type=float, default=0.1, metavar="T", help="percent points of mIoU (default 0.1)"
    )
    parser.add_argument("--batch-size", type=_whole, default=1, metavar="N", help="images of one size at a time")
    parser.add_argument("--limit", type=_whole, metavar="N", help="measure the first N images only, without a verdict")
