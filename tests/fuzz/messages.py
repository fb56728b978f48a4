"""Damaged protobuf messages: by field, and by what stands on the wire."""

from fuzz import bits

MAX_STEPS = 12
_SIGNED = {1, 2}  # cpp types INT32 and INT64
_WIDTHS = {1: 32, 2: 64, 3: 32, 4: 64, 8: 32}


def damage(rng, message, texts=bits.TEXTS):
    """Changes fields of a message, at any depth.

    Args:
        rng: Source of chance.
        message: Is changed.
        texts: What texts are replaced by: names that occur in the message, say.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        owner, field = _some_field(rng, message)
        if field is not None:
            _damage_field(rng, owner, field, texts)


def damage_wire(rng, data):
    """Changes tags, lengths and contents of serialized fields, at any depth."""
    kind = rng.randrange(10)
    if kind == 0:
        return bits.damage(rng, data)
    if kind == 1:
        return _nested(rng) + data
    fields = split(data)
    if not fields:
        return bits.damage(rng, data)
    at = rng.randrange(len(fields))
    number, wire, value = fields[at]
    if wire == 2 and isinstance(value, bytes) and rng.random() < 0.75:
        inner = damage_wire(rng, value) if split(value) else bits.damage(rng, value)
        fields[at] = (number, wire, inner)
        return join(fields)
    choice = rng.randrange(7)
    if choice == 0:
        fields[at] = (number, rng.randrange(8), value)
    elif choice == 1:
        fields[at] = (bits.integer(rng, 29), wire, value)
    elif choice == 2:
        fields[at:at] = [fields[at]] * rng.choice((1, 2, 100))
    elif choice == 3:
        del fields[at]
    elif choice == 4:
        fields.insert(at, (number, 2, rng.randbytes(rng.randrange(40))))
    elif choice == 5 and wire == 0:
        fields[at] = (number, wire, bits.integer(rng, 64))
    else:
        # A length that promises more, or a varint that does not end.
        whole = join(fields)
        cut = len(join(fields[:at]))
        length = rng.choice((bits.varint(bits.integer(rng, 64)), b"\xff" * 11))
        return whole[:cut] + bits.varint(number << 3 | 2) + length + whole[cut:]
    return join(fields)


def split(data):
    """Returns (number, wire type, value) of each field; empty if it is no message."""
    fields, position = [], 0
    try:
        while position < len(data):
            tag, position = _varint(data, position)
            number, wire = tag >> 3, tag & 7
            if wire == 0:
                value, position = _varint(data, position)
            elif wire == 2:
                length, position = _varint(data, position)
                value = data[position : position + length]
                position += length
            elif wire in (1, 5):
                length = 8 if wire == 1 else 4
                value = data[position : position + length]
                position += length
            else:
                return []
            if position > len(data) or number == 0:
                return []
            fields.append((number, wire, value))
    except IndexError:
        return []
    return fields


def join(fields):
    """Returns fields as bytes, whatever their value and wire type say."""
    out = bytearray()
    for number, wire, value in fields:
        out += bits.varint(number << 3 | wire)
        if isinstance(value, int):
            out += bits.varint(value) if wire != 2 else bits.varint(value % 1000)
        elif wire == 2:
            out += bits.varint(len(value)) + value
        else:
            out += value
    return bytes(out)


def _varint(data, position):
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 70:
            raise IndexError


def _nested(rng):
    """Returns fields within fields, deeper than any reader's stack."""
    content = b""
    number = rng.choice((1, 2, 5))
    for _ in range(rng.choice((50, 120, 3000))):
        content = bits.varint(number << 3 | 2) + bits.varint(len(content)) + content
    return content


def _some_field(rng, message):
    """Walks down at random; returns a message and the descriptor of a set field."""
    for _ in range(MAX_STEPS):
        listed = message.ListFields()
        if not listed:
            fields = message.DESCRIPTOR.fields
            return message, rng.choice(fields) if fields else None
        field, value = rng.choice(listed)
        if field.message_type is None or rng.random() < 0.12:
            if rng.random() < 0.1:
                field = rng.choice(message.DESCRIPTOR.fields)
            return message, field
        if _is_map(field):
            if field.message_type.fields_by_name["value"].message_type is None:
                return message, field
            message = value[rng.choice(sorted(value))]
        elif _is_repeated(field):
            message = value[rng.randrange(len(value))]
        else:
            message = value
    return message, None


def _is_repeated(field):
    return field.is_repeated


def _is_map(field):
    kind = field.message_type
    return kind is not None and kind.GetOptions().map_entry


def _damage_field(rng, owner, field, texts):
    name = field.name
    value = getattr(owner, name)
    if _is_map(field):
        _damage_map(rng, owner, field, texts)
    elif _is_repeated(field):
        _damage_list(rng, value, field, texts)
    elif field.message_type is not None:
        if rng.random() < 0.5:
            owner.ClearField(name)
        else:
            value.SetInParent()
    else:
        setattr(owner, name, _scalar(rng, field, texts))


def _damage_list(rng, items, field, texts):
    kind = rng.randrange(6)
    is_message = field.message_type is not None
    if not items or kind == 5:
        if is_message:
            items.add()
        else:
            items.append(_scalar(rng, field, texts))
        return
    at, other = rng.randrange(len(items)), rng.randrange(len(items))
    if kind == 0:
        del items[at]
    elif kind == 1:
        copies = [items[at]] * rng.choice((1, 2, 30))
        items.extend(copies)
    elif kind == 2:
        order = list(items) if not is_message else [_copy(item) for item in items]
        order[at], order[other] = order[other], order[at]
        del items[:]
        items.extend(order)
    elif kind == 3 and len(items) < 1000:
        del items[rng.randrange(len(items)) :]
    elif is_message:
        items[at].CopyFrom(_copy(items[other]))
    else:
        items[at] = _scalar(rng, field, texts)


def _damage_map(rng, owner, field, texts):
    items = getattr(owner, field.name)
    value_field = field.message_type.fields_by_name["value"]
    key_field = field.message_type.fields_by_name["key"]
    keys = sorted(items)
    kind = rng.randrange(4)
    is_message = value_field.message_type is not None
    if keys and kind == 0:
        del items[rng.choice(keys)]
    elif keys and kind == 1 and is_message:
        items[rng.choice(keys)].CopyFrom(_copy(items[rng.choice(keys)]))
    elif keys and kind == 2:
        key, new = rng.choice(keys), _scalar(rng, key_field, texts)
        if is_message:
            items[new].CopyFrom(_copy(items[key]))
        else:
            items[new] = items[key]
        if new != key:
            del items[key]
    else:
        new = rng.choice(keys) if keys else _scalar(rng, key_field, texts)
        if is_message:
            items[new].Clear()
        else:
            items[new] = _scalar(rng, value_field, texts)


def _copy(message):
    other = type(message)()
    other.CopyFrom(message)
    return other


def _scalar(rng, field, texts):
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING:
        text = rng.choice(texts if rng.random() < 0.7 else bits.TEXTS)
        return text.encode() if field.type == field.TYPE_BYTES else text
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    if kind == field.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if rng.random() < 0.5:
        return rng.randrange(30)
    signed = kind in _SIGNED or kind == field.CPPTYPE_ENUM
    return bits.integer(rng, _WIDTHS[kind], signed=signed)
