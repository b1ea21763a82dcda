"""Modules that are imported when they are first used."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_deferred_module_is_imported_when_it_is_used() -> None:
    code = (
        "import sys\nfrom mango.lazy import defer\ndefer('decimal')\n"
        "import decimal\nimport decimal as again\nstand_in = decimal\n"
        "print('_decimal' in sys.modules, decimal.Decimal(3) / 2, again.Decimal is decimal.Decimal,"
        " '_decimal' in sys.modules, sys.modules['decimal'] is not stand_in, decimal.Decimal.__module__)"
    )
    assert run(code) == "False 1.5 True True True decimal"


@pytest.mark.parametrize("use", ["from xml import etree", "import xml.etree.ElementTree", "import xml.etree as e"])
def test_other_ways_to_import_it_work(use: str) -> None:
    assert run(f"from mango.lazy import defer\ndefer('xml')\n{use}\nimport xml\nprint(xml.__name__)") == "xml"


def test_what_the_module_lacks_it_lacks() -> None:
    code = (
        "from mango.lazy import defer\ndefer('decimal')\nimport decimal\n"
        "try:\n    decimal.nothing\nexcept AttributeError as error:\n    print(error)"
    )
    assert run(code) == "module 'decimal' has no attribute 'nothing'"


def test_missing_and_imported_modules_are_left_alone() -> None:
    code = (
        "import sys, json\nfrom mango.lazy import defer\ndefer('json'); defer('no_such_module')\n"
        "print(sys.modules['json'] is json, 'no_such_module' in sys.modules)"
    )
    assert run(code) == "True False"


def test_threads_get_the_whole_module() -> None:
    code = (
        "from mango.lazy import defer\ndefer('decimal')\nimport decimal\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    print(set(pool.map(lambda i: str(decimal.Decimal(i) * 0 + decimal.ROUND_UP.count('_')), range(64))))"
    )
    assert run(code) == "{'1'}"
