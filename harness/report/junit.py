"""Gates as JUnit XML, which CI systems show as tests."""

from collections.abc import Iterable
from xml.etree import ElementTree

Gate = tuple[str, str, str]
"""What fails, what was seen, and the outcome (`passed`, `failed` or `undecided`)."""
KINDS = {"failures": "failed", "skipped": "undecided"}
"""Attribute of a test suite -> the outcome that it counts."""


def as_xml(suite: str, gates: Iterable[Gate]) -> str:
    """A test suite with a test for each gate; an undecided one is skipped, with the reason.

    >>> as_xml("run", [("ttft_s.p99>500ms", "612 ms", "failed")]).splitlines()[1]
    '<testsuites><testsuite name="run" tests="1" failures="1" skipped="0">\
<testcase classname="run" name="ttft_s.p99&gt;500ms">\
<failure message="612 ms" /></testcase></testsuite></testsuites>'
    """
    every = list(gates)
    counts = {name: f"{sum(each[2] == kind for each in every)}" for name, kind in KINDS.items()}
    root = ElementTree.Element("testsuites")
    tests = ElementTree.SubElement(root, "testsuite", {"name": suite, "tests": f"{len(every)}", **counts})
    for name, seen, outcome in every:
        test = ElementTree.SubElement(tests, "testcase", {"classname": suite, "name": name})
        for tag, kind in (("failure", "failed"), ("skipped", "undecided")):
            if outcome == kind:
                ElementTree.SubElement(test, tag, {"message": seen})
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"
