"""Clips a second, processor time a clip and memory of loading AVSBench: files or shards, our pipeline or PyTorch's.

    python -m benchmarks.loading [--root=avsbench_data --setting=ms3] [--clips=240] [--seconds=8] [--json=FILE]

Without --root a tree of AVSBench's MS3 is made in a temporary folder: crops of two photographs (scikit-learn's) as PNG,
224 x 224, with masks and pickled log-mels. It is packed (`avs_jax.prepare pack`), and each row loads shuffled batches
of it for --seconds in processes of its own. Everything is read from the page cache after the first pass. PyTorch's rows
need torch (pip install -e '.[benchmark]') and are left out without it. Their batches are float32, normalised, as the
public code makes them; ours are uint8, which the device normalises: "uint8" rows do PyTorch's work without it.

Processor time is that of all processes, workers included; memory is the highest sum of their proportional set sizes.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIDE, FRAMES = 224, 5
WARM = 1.5  # seconds that do not count: caches, and what workers had ready


# ---- A tree of AVSBench, as large as the real one


def write_tree(root: Path, clips: int, workers: int) -> Path:
    """Writes `clips` training clips of MS3 and returns `root`."""
    from avs_jax.data.prepare import runner

    folder = root / "Multi-sources"
    folder.mkdir(parents=True)
    names = [f"clip_{i:05d}" for i in range(clips)]
    (folder / "ms3_meta_data.csv").write_text("video_id,split\n" + "".join(f"{name},train\n" for name in names))
    for _ in runner.run(_write_clip, [(folder / "ms3_data", name) for name in names], workers):
        pass
    return root


def _write_clip(item: tuple[Path, str]) -> None:
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from avs_jax.data.audio import vggish_log_mel
    from avs_jax.data.prepare.torch_pickle import tensor_pickle

    data, name = item
    rng = np.random.default_rng(int(name.rpartition("_")[2]))
    photos = load_sample_images().images
    photo = photos[rng.integers(len(photos))]
    side = int(rng.integers(SIDE, min(photo.shape[:2]) - FRAMES))
    top, left = (int(rng.integers(0, n - side - FRAMES)) for n in photo.shape[:2])
    folders = [data / "visual_frames" / name, data / "gt_masks" / "train" / name, data / "audio_log_mel" / "train"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    for k in range(1, FRAMES + 1):  # the camera moves, and so does the object
        crop = Image.fromarray(photo[top + k : top + k + side, left + k : left + k + side])
        crop.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(folders[0] / f"{name}.mp4_{k}.png", compress_level=3)
        inside = (rows + 0.02 * k) ** 2 / 0.06 + columns**2 / 0.03 + 0.2 * np.sin(40 * columns) < 1
        Image.fromarray(np.uint8(inside) * 255).save(folders[1] / f"{name}_{k}.png")
    log_mel = vggish_log_mel(rng.normal(0, 0.1, FRAMES * 16000), 16000)
    (folders[2] / f"{name}.pkl").write_bytes(tensor_pickle(log_mel[:, None]))


def files_of(source) -> list[tuple[list[str], list[str], str]]:
    """(frames, masks, log-mel) of every clip of an `AVSBenchSource`."""
    layout, found = source.layout, []
    for name, category in zip(source.ids, source.categories, strict=True):

        def path(template, k=0, name=name, category=category):
            return str(source.root / template.format(split=source.split, category=category, id=name, k=k))

        masks = layout.train_masks if source.split == "train" else FRAMES
        found.append((
            [path(layout.frame, k) for k in range(1, FRAMES + 1)],
            [path(layout.mask, k) for k in range(1, masks + 1)],
            path(layout.log_mel),
        ))  # fmt: skip
    return found


# ---- One row, in a process of its own


def measure(case: dict) -> dict:
    """Loads batches for a while: clips/s, processor ms a clip, seconds until the first batch, bytes of a batch."""
    from avs_jax.data.sources import create_source

    source = create_source(case["source"], **case["data"])
    size = case["batch_size"]
    start = time.perf_counter()
    if case["loader"] == "torch":
        from benchmarks.torch_loader import batches

        stream = batches(files_of(source), batch_size=size, workers=case["workers"], normalised=case["normalised"])
    else:
        from avs_jax.data.pipeline import train_batches

        stream = train_batches(source, seed=0, batch_size=size, workers=case["workers"], threads=case["threads"])
    batch = next(stream)
    first = time.perf_counter() - start
    values = batch.values() if isinstance(batch, dict) else batch
    held = sum(value.nbytes for value in values)
    for _ in itertools.takewhile(lambda _: time.perf_counter() - start < first + WARM, stream):
        pass
    begin, used, count = time.perf_counter(), processor_seconds(os.getpid()), 0
    while time.perf_counter() - begin < case["seconds"]:
        next(stream)
        count += size
    wall, used = time.perf_counter() - begin, processor_seconds(os.getpid()) - used
    stream.close()
    return {"rate": count / wall, "processor": used / count, "first": first, "batch": held}


def processor_seconds(pid: int) -> float:
    """Of a process and those below it, so far."""
    ticks = 0
    for one in family(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        except OSError:  # it has ended
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for one in found:
        for listing in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in listing.read_text().split()]
            except OSError:
                continue
    return found


def memory(pid: int) -> int:
    """Bytes of a process and those below it; shared pages count once."""
    total = 0
    for one in family(pid):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def in_own_process(case: dict) -> dict:
    """`measure` in a process of its own, whose memory is watched from here."""
    command = [sys.executable, "-m", "benchmarks.loading", f"--case={json.dumps(case)}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            time.sleep(0.25)
        lines = process.stdout.read().splitlines()
    if process.returncode:
        raise SystemExit(f"{case['title']}: status {process.returncode}")
    return {**case, **json.loads(lines[-1]), "memory": peak}


# ---- The table


def cases(tree: dict, packs: dict[str, Path], args) -> list[dict]:
    """What is measured, in order; the first is what the others are compared with, where torch is there."""
    common = {"batch_size": args.batch_size, "seconds": args.seconds}
    files = {"source": "avsbench", "data": tree, **common}
    found = []
    try:
        import torch  # noqa: F401
    except ImportError:
        print("torch is not installed: rows of its DataLoader are left out", file=sys.stderr)
    else:
        for workers, normalised in ((args.workers, True), (0, True), (args.workers, False)):
            title = "PNG, PyTorch DataLoader" + ", uint8" * (not normalised)
            found.append({**files, "title": title, "loader": "torch", "workers": workers, "threads": 0,
                          "normalised": normalised})  # fmt: skip
    for workers, threads in ((args.workers, 1), (0, 2)):
        found.append({**files, "title": "PNG, ours", "loader": "ours", "workers": workers, "threads": threads})
    for codec, path in packs.items():
        shards = {"source": "packed", "data": {"root": str(path), "split": tree["split"]}, **common}
        for workers, threads in ((args.workers, 1), (0, 2), (0, 1))[: 3 if codec == "raw" else 2]:
            title = f"shards ({codec}), ours"
            found.append({**shards, "title": title, "loader": "ours", "workers": workers, "threads": threads})
    return found


def report(rows: list[dict]) -> str:
    """A Markdown table."""
    base = rows[0] if rows and rows[0]["loader"] == "torch" else None
    columns = ["", "processes", "threads each", "clips/s", "processor ms/clip", "peak MiB", "first batch, s"]
    columns += ["clips/s, x first row", "processor, x first row"] if base else []
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [row["title"], row["workers"], row["threads"] or "-", f"{row['rate']:.0f}",
                 f"{row['processor'] * 1e3:.2f}", f"{row['memory'] / 2**20:.0f}", f"{row['first']:.1f}"]  # fmt: skip
        if base:
            cells += [f"{row['rate'] / base['rate']:.1f}", f"{base['processor'] / row['processor']:.1f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def prepare(folder: Path, args) -> tuple[dict, dict[str, Path], str]:
    """The tree's options, the packed folders by codec, and the sizes in words."""
    from avs_jax.data.prepare import pack
    from avs_jax.data.sources import create_source
    from avs_jax.data.sources.packed_index import INDEX, read

    root = Path(args.root) if args.root else write_tree(folder / "tree", args.clips, args.workers)
    tree = {"root": str(root), "setting": args.setting if args.root else "ms3", "split": "train"}
    source = create_source("avsbench", **tree)
    png = sum(os.path.getsize(name) for frames, masks, sound in files_of(source) for name in (*frames, *masks, sound))
    packs, sizes = {}, [f"PNG tree {png / len(source) / 1024:.0f}"]
    for codec in ("raw", "compressed"):
        packs[codec] = folder / codec
        begin, used = time.perf_counter(), processor_seconds(os.getpid())
        (plan,) = pack.make_plans(packs[codec], "avsbench", [tree], codec)
        pack.pack(plan, 0)
        wall, used = time.perf_counter() - begin, processor_seconds(os.getpid()) - used
        size = sum(shard["bytes"] for shard in read(packs[codec] / "train" / INDEX)["shards"])
        sizes.append(f"shards ({codec}) {size / len(source) / 1024:.0f}, packed by one process at "
                     f"{len(source) / wall:.0f} clips/s, {used / len(source) * 1e3:.0f} processor ms each")  # fmt: skip
    return tree, packs, f"{len(source)} clips; KiB a clip: " + "; ".join(sizes)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.loading", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--root", help="folder of AVSBench with log-mels (default: a tree is made)")
    add("--setting", default="ms3", choices=("s4", "ms3"))
    add("--clips", type=int, default=240, help="of the tree that is made")
    add("--batch-size", "--batch_size", type=int, default=4)
    add("--workers", type=int, default=2, help="data processes of the rows with any")
    add("--seconds", type=float, default=8.0, help="of each row")
    add("--json", help="file for the rows")
    add("--case", help="measure one row, as JSON, in this process")
    args = parser.parse_args(argv)
    if args.case:
        from absl import flags

        flags.FLAGS.mark_as_parsed()  # grain's data processes read a flag
        print(json.dumps(measure(json.loads(args.case))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        tree, packs, sizes = prepare(Path(folder), args)
        print(
            f"AVSBench {tree['setting']}, batches of {args.batch_size}, {os.cpu_count()} cores; {sizes}\n", flush=True
        )
        rows = [in_own_process(case) for case in cases(tree, packs, args)]
    print(report(rows))
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
