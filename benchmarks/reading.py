"""How fast the page of `raddraft read` is in Chromium: 10,000 studies, and films of 3,000 x 3,000 pixels of 12 bits.

    python -m benchmarks.reading --model runs/demo/model

Seconds count from opening the page to the list of studies, and from opening a study to its film on the screen: the
first, the next, which was fetched ahead, and the last of the list, which was not. Frames a second are counted for three
seconds while the window, or the zoom, changes with every frame. Memory is that of the browser's process for the page.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

from raddraft.errors import RadDraftError
from raddraft.studies import Study, StudyImage, write_studies
from raddraft.text import format_table

SIDE = 3000
SIZES = ((1280, 720), (1920, 1080))
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
FRAMES = """async (change) => {
    const canvas = document.querySelector('.pane canvas');
    const level = document.getElementById('level');
    const start = performance.now();
    let count = 0;
    while (performance.now() - start < 3000) {
        if (change === 'window') {
            level.value = 0.3 + 0.008 * (count % 50);
            level.dispatchEvent(new Event('input'));
        } else {
            const deltaY = count % 40 < 20 ? -20 : 20;
            canvas.dispatchEvent(new WheelEvent('wheel', { deltaY, clientX: 500, clientY: 300, cancelable: true }));
        }
        await new Promise(requestAnimationFrame);
        count++;
    }
    return count / ((performance.now() - start) / 1000);
}"""


def main(model: Path, count: int = 10_000) -> None:
    """Measure, and print a table.

    Args:
        model: Folder of a trained model.
        count: Studies in the list.
    """
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if not chromium:
        raise RadDraftError("chromium is not installed")
    rows: list[list[str | int]] = [
        ["window", "list, s", "first film, s", "next, s", "last, s", "window, 1/s", "zoom, 1/s", "MB"]
    ]
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        write_list(Path(folder), count)
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for size in SIZES:
            with serving(model, Path(folder)) as address:
                rows.append(
                    [f"{size[0]} x {size[1]}", *(f"{value:.2f}" for value in measure(browser, address, size, count))]
                )
        browser.close()
    print(format_table(rows))


def measure(browser: Any, address: str, size: tuple[int, int], count: int) -> list[float]:
    """The values of a row."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.set_default_timeout(120_000)
    start = perf_counter()
    page.goto(address)
    page.wait_for_selector(".row")
    listed = perf_counter()
    page.wait_for_selector(".pane .values:not(:empty)")
    first = perf_counter()
    page.wait_for_selector("#text:not([readonly])")
    page.wait_for_timeout(3000)  # the films of the next study come ahead
    ahead = perf_counter()
    page.keyboard.press("j")
    page.wait_for_selector(".pane .values:not(:empty)")
    shown = perf_counter()
    page.focus("#rows")
    page.keyboard.press("End")
    jump = perf_counter()
    page.wait_for_selector(f"#study-id:text-is('s{count - 1}')")
    page.wait_for_selector(".pane .values:not(:empty)")
    last = perf_counter()
    frames = [page.evaluate(FRAMES, change) for change in ("window", "zoom")]
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    memory = max(resident(one["id"]) for one in processes if one["type"] == "renderer")
    page.close()
    return [listed - start, first - listed, shown - ahead, last - jump, *frames, memory]


def write_list(folder: Path, count: int) -> None:
    """A manifest of which the first two and the last study have large films, and the others a small picture."""
    from PIL import Image
    from pydicom import Dataset, uid
    from pydicom.dataset import FileMetaDataset

    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    noise = np.random.default_rng(0).normal(0, 20, (SIDE, SIDE))
    stored = (600 + 2500 * np.exp(-((x - 0.5) ** 2) / 0.05) * (0.3 + 0.7 * y) + noise).clip(0, 4095).astype(np.uint16)
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    film.SOPClassUID, film.SOPInstanceUID, film.Modality = uid.DigitalXRayImageStorageForPresentation, "1.2.3.4", "DX"
    film.Rows, film.Columns, film.SamplesPerPixel, film.PhotometricInterpretation = SIDE, SIDE, 1, "MONOCHROME2"
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 16, 12, 11, 0
    film.WindowCenter, film.WindowWidth, film.PixelData = 1800, 2400, stored.tobytes()
    for name in ("0.dcm", "1.dcm", "last.dcm"):
        film.save_as(folder / name, enforce_file_format=True)
    Image.fromarray((stored[::12, ::12] >> 4).astype(np.uint8)).save(folder / "small.png")
    small = [folder / "small.png"] * (count - 3)
    files = [folder / "0.dcm", folder / "1.dcm", *small, folder / "last.dcm"]
    studies = (
        Study(f"s{number}", f"p{number // 2}", "test", [StudyImage(file, "PA")], {"indication": "Cough and fever"})
        for number, file in enumerate(files)
    )
    write_studies(folder / "studies.jsonl", studies)


@contextmanager
def serving(model: Path, folder: Path) -> Iterator[str]:
    """Run `raddraft read`, and give its address."""
    command = [
        sys.executable,
        "-m",
        "raddraft",
        "read",
        model,
        folder / "studies.jsonl",
        "--out",
        folder / "reads.jsonl",
    ]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.match(r"Open (\S+)", line):
                yield found[1]
                return
        raise RadDraftError(f"raddraft read does not start: {''.join(said)}")
    finally:
        process.terminate()
        process.wait()


def resident(process: int) -> float:
    """Memory of a process in MB (Linux)."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return int(found[1]) / 1000 if found else 0.0


if __name__ == "__main__":
    from raddraft.cli import run

    run("reading", package="benchmarks")
