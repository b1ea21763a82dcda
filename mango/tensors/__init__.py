"""Pure tensor maths: no modules, no files."""

from __future__ import annotations

from mango.tensors.dtypes import DTYPES, dtype_name, item_bytes, parse_dtype, torch_dtype

__all__ = ["DTYPES", "dtype_name", "item_bytes", "parse_dtype", "torch_dtype"]
