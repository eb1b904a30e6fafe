"""Looks into files of weights, and converts them. Nothing in a file is executed, and torch is not needed.

    python -m avs_jax.weights inspect resnet50-0676ba61.pth
    python -m avs_jax.weights inspect MS3.pth vggish-10086976.pth --method tpavi --options setting=ms3,backbone=resnet50
    python -m avs_jax.weights convert pvt_v2_b5.pth pvt_v2_b5.safetensors
    python -m avs_jax.weights convert MS3.pth vggish-10086976.pth runs/public_ms3 --config configs/tpavi.py:setting=ms3
    python -m avs_jax.weights convert runs/ms3 ms3.pth --part network

A file is a path, a file's name (looked up here and in --folder), or a Hugging Face hub id such as timm/pvt_v2_b5.in1k.
`convert` writes a file if OUT ends in .safetensors, .pth, .pt or .pth.tar, else a workdir for evaluate and predict.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from avs_jax import cli
from avs_jax.errors import InputError
from avs_jax.paths import to_path


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line.

    Raises:
      InputError: an argument that does not exist, or one that is missing.
    """
    head, _, more = __doc__.partition("\n\n")
    layout = argparse.RawDescriptionHelpFormatter
    parser = cli.Parser("python -m avs_jax.weights", description=head, epilog=more, formatter_class=layout)
    commands = parser.add_subparsers(dest="command", required=True, metavar="inspect | convert")
    inspect = commands.add_parser("inspect", help="list the tensors of files and tell which model they fit")
    inspect.add_argument("files", nargs="+", metavar="FILE")
    inspect.add_argument("--brief", action="store_true", help="leave out the list of tensors")
    convert = commands.add_parser("convert", help="write one file of weights, or a workdir")
    convert.add_argument("files", nargs="+", metavar="IN", help="files of weights, or one workdir")
    convert.add_argument("output", metavar="OUT", help="a file of weights, or a new workdir")
    convert.add_argument("--config", help="the recipe of the new workdir: file.py or file.py:name=value,...")
    parts = "network: without the audio encoder, as AVSBench's code saves it; audio: that alone"
    convert.add_argument("--part", default="all", choices=("all", "network", "audio"), help=parts)
    convert.add_argument("--checkpoint", default="best", choices=("best", "latest"), help="of the workdir that is read")
    convert.add_argument("--overwrite", action="store_true", help="replace the file OUT")
    for command in (inspect, convert):
        command.add_argument("--method", help="the method that the files together must fit")
        command.add_argument("--encoder", help="the encoder that the files together must fit")
        command.add_argument("--options", default="", help="of either: name=value,...; lists and mappings as JSON")
        command.add_argument("--folder", default="weights", help="where fetched files lie (default: weights)")
    return parser.parse_args(argv)


def options_of(text: str) -> dict:
    """The options of "name=value,name=[1,2]": numbers, true, false, null, lists and mappings as such, the rest as text.

    Raises:
      InputError: something else than name=value.
    """
    options, rest = {}, text.strip()
    while rest:
        match = re.match(r"\s*(\w+)=(\[[^\]]*\]|\{[^}]*\}|[^,]*)(?:,|$)", rest)
        if match is None:
            raise InputError("--options", expected="name=value,...", found=repr(rest))
        try:
            options[match[1]] = json.loads(match[2])
        except ValueError:
            options[match[1]] = {"True": True, "False": False, "None": None}.get(match[2], match[2])
        rest = rest[match.end() :]
    return options


def model_of(args):
    """The method or encoder that the command line names, or None."""
    from avs_jax.methods import create
    from avs_jax.models.encoders import create_encoder

    if args.method and args.encoder:
        raise InputError("command line", expected="--method or --encoder", found="both")
    if args.method:
        return create(args.method, **options_of(args.options))
    if args.encoder:
        return create_encoder(args.encoder, **options_of(args.options))
    if args.options:
        raise InputError("--options", expected="--method or --encoder with it", found="neither")
    return None


def run_inspect(args) -> int:
    """Prints; returns 1 where the files do not fit the model that was named."""
    from avs_jax.weights import inspection
    from avs_jax.weights.files import read_file

    model, state_dicts = model_of(args), []
    for text in args.files:
        path = _locate(text, args)
        if path.is_dir():
            raise InputError(path, expected="a file of weights", found="a folder",
                             hint="A workdir's weights can be written to a file: convert WORKDIR OUT.pth.")  # fmt: skip
        contents = read_file(path)
        state_dicts.append(contents.tensors)
        if not args.brief:
            print(inspection.listing(contents.tensors))
        print(inspection.summary(path, contents))
        print(inspection.fit_text(contents.tensors), end="\n\n", flush=True)
    if model is None:
        return 0
    match = inspection.match(model, state_dicts)
    target = f"{args.method or args.encoder} {args.options}".strip()
    print(f"beside {target}: {len(match.used)} of its {len(match.table.rules)} keys fit"
          + (f", {len(match.ignored)} ignored" if match.ignored else ""))  # fmt: skip
    if match.faults:
        print(match.text(limit=None))
    if match.prefix:
        print(match.hint())
    return 1 if match.faults else 0


def run_convert(args) -> int:
    """Writes OUT and tells what it is."""
    from avs_jax.weights import conversion

    output, paths = to_path(args.output), [_locate(text, args) for text in args.files]
    if conversion.is_file_name(output):
        if args.config:
            raise InputError("--config", expected="a workdir as OUT", found=repr(args.output))
        if output.exists() and not args.overwrite:
            raise InputError(output, expected="a new file", found="one that exists", hint="Add --overwrite.")
        written = conversion.to_file(paths, output, model=model_of(args), part=args.part, checkpoint=args.checkpoint)
        size = sum(a.size for a in written.values())
        print(f"{output}: {len(written)} tensors, {size:,} numbers, {output.stat().st_size / 1e6:.1f} MB")
        return 0
    if args.part != "all":
        raise InputError("--part", expected="'all' for a workdir", found=repr(args.part))
    config = _config(args)
    method = conversion.to_workdir(paths, output, config)
    root = " --data.root=<folder of the data set>" if "root" in config.data and not config.data.root else ""
    print(f"{output}: a workdir of {method.name}\n"
          f"python -m avs_jax.evaluate --workdir={output}{root}\n"
          f"python -m avs_jax.predict --workdir={output} --input=<video> --output=<folder>")  # fmt: skip
    return 0


def _locate(text: str, args) -> Path:
    from avs_jax.weights.public import locate

    return locate(text, field=f"'{text}'", folder=args.folder)


def _config(args):
    """The recipe's config, or the defaults with the named method."""
    from avs_jax import config as configs

    if args.config:
        if args.method or args.encoder or args.options:
            raise InputError("command line", expected="--config or --method", found="both")
        return cli.read_recipe(args.config)
    if not args.method:
        raise InputError("command line", expected="--config or --method, to make a workdir", found="neither",
                         hint="For a file, end OUT in .safetensors or .pth.")  # fmt: skip
    config, options = configs.defaults(), options_of(args.options)
    config.method.update(name=args.method, **options)
    config.data.update(source="avsbench", root="", image_size=224)
    if "setting" in options:
        config.data.setting = options["setting"]
    return config


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status: 0, 1 if the files do not fit the named model, 2 on bad input."""
    try:
        return cli.status_of(lambda: _command(argv))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # | head
        sys.stderr.close()
        return 0


def _command(argv):
    args = parse(argv)
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    cli.enable_compile_cache()
    return run_inspect(args) if args.command == "inspect" else run_convert(args)


if __name__ == "__main__":
    sys.exit(main())
