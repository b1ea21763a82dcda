"""The names of the methods of a configuration object, known without importing transformers, which takes seconds."""

from __future__ import annotations

import functools
from importlib.metadata import version

_VERSION = "5.23.0"
_METHODS = """
    __class__ __delattr__ __dir__ __eq__ __format__ __ge__ __getattribute__ __getstate__ __gt__ __init__
    __init_subclass__ __iter__ __le__ __lt__ __ne__ __new__ __post_init__ __reduce__ __reduce_ex__ __repr__
    __setattr__ __sizeof__ __str__ __subclasshook__ _check_received_keys _decode_special_floats
    _dict_from_json_file _encode_special_floats _get_config_dict _get_files_timestamps
    _get_generation_parameters _getattr_without_heterogeneous_validation
    _hasattr_without_heterogeneous_validation _iter_config_keys_with_heterogeneous_adjustment
    _remove_keys_not_serialized _update_heterogeneous_to_dict_output _upload_modified_files
    _validate_axial_rope_parameters _validate_default_rope_parameters _validate_dynamic_rope_parameters
    _validate_linear_rope_parameters _validate_llama3_rope_parameters _validate_longrope_rope_parameters
    _validate_proportional_rope_parameters _validate_yarn_rope_parameters convert_rope_params_to_dict
    default_config_fields dict_dtype_to_str from_dict from_json_file from_pretrained get_config_dict
    get_mtp_config get_text_config is_custom_code is_remote_code nested_rope_parameter_keys push_to_hub
    register_for_auto_class save_pretrained standardize_rope_params to_dict to_diff_dict to_json_file
    to_json_string update update_from_string validate validate_architecture validate_layer_type
    validate_output_attentions validate_rope validate_token_ids
"""


@functools.cache
def config_methods() -> frozenset[str]:
    """Return the names of the methods that the installed transformers gives a configuration.

    Of the release that the list above was made for, they are in it; of another one, the class itself is asked.
    """
    if version("transformers") == _VERSION:
        return frozenset(_METHODS.split())
    return asked_methods()


def asked_methods() -> frozenset[str]:
    """Return the same from the class itself."""
    from transformers import PretrainedConfig

    names = (name for name in dir(PretrainedConfig) if callable(getattr(PretrainedConfig, name, None)))
    return frozenset(names)
