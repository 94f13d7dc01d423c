package pgsource

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgtype"
)

// kind is how values of a type become bytes whose order is that of the values. A column's bytes begin with the kind, so that a
// position tells what it was made of; numbers must not change, since positions are stored.
type kind byte

const (
	kindInt       kind = 1 // int2, int4 and int8 alike: a column may be widened
	kindText      kind = 2
	kindBytes     kind = 3
	kindUUID      kind = 4
	kindTimestamp kind = 5
	kindTimeTZ    kind = 6
	kindDate      kind = 7
	kindBool      kind = 8
	kindXID       kind = 9
)

// sqlType is what a parameter that holds such a value is cast to.
var sqlType = map[kind]string{kindInt: "int8", kindText: "text", kindBytes: "bytea", kindUUID: "uuid", kindTimestamp: "timestamp",
	kindTimeTZ: "timestamptz", kindDate: "date", kindBool: "bool", kindXID: "xid8"}

var kindOf = map[uint32]kind{pgtype.Int2OID: kindInt, pgtype.Int4OID: kindInt, pgtype.Int8OID: kindInt, pgtype.TextOID: kindText,
	pgtype.VarcharOID: kindText, pgtype.ByteaOID: kindBytes, pgtype.UUIDOID: kindUUID, pgtype.TimestampOID: kindTimestamp,
	pgtype.TimestamptzOID: kindTimeTZ, pgtype.DateOID: kindDate, pgtype.BoolOID: kindBool, pgtype.XID8OID: kindXID}

const signBit = 1 << 63

// appendColumn appends one column of a key. raw is the value in Postgres' binary form.
//
// Numbers are big endian with the sign bit flipped. Text and bytes end with 00 01, and a zero byte in them becomes 00 FF, so
// that the end is less than whatever else may follow; texts must be compared with collation "C" on the other side.
func appendColumn(dst []byte, k kind, raw []byte) ([]byte, error) {
	dst = append(dst, byte(k))
	switch k {
	case kindInt:
		n, err := widened(raw)
		return binary.BigEndian.AppendUint64(dst, uint64(n)^signBit), err
	case kindText, kindBytes:
		for _, b := range raw {
			if dst = append(dst, b); b == 0 {
				dst = append(dst, 0xff)
			}
		}
		return append(dst, 0, 1), nil
	}
	size, flip := fixedSize(k)
	if len(raw) != size {
		return nil, fmt.Errorf("a value of type %s has %d bytes, expected %d", sqlType[k], len(raw), size)
	}
	at := len(dst)
	dst = append(dst, raw...)
	if flip {
		dst[at] ^= 0x80
	}
	return dst, nil
}

// widened is an int2, int4 or int8.
func widened(raw []byte) (int64, error) {
	switch len(raw) {
	case 2:
		return int64(int16(binary.BigEndian.Uint16(raw))), nil
	case 4:
		return int64(int32(binary.BigEndian.Uint32(raw))), nil
	case 8:
		return int64(binary.BigEndian.Uint64(raw)), nil
	}
	return 0, fmt.Errorf("an integer of %d bytes", len(raw))
}

// fixedSize is the size of a kind's binary form, and whether that begins with a sign bit.
func fixedSize(k kind) (size int, signed bool) {
	switch k {
	case kindUUID:
		return 16, false
	case kindTimestamp, kindTimeTZ: // microseconds; both infinities are the outermost numbers
		return 8, true
	case kindDate:
		return 4, true
	case kindBool:
		return 1, false
	case kindXID:
		return 8, false
	default:
		return 0, false
	}
}

var errKey = errors.New("it is not a key of this query")

// decodeKey takes a key apart, into values in the binary form of sqlType.
func decodeKey(key []byte) (kinds []kind, raws [][]byte, err error) {
	for len(key) > 0 {
		k := kind(key[0])
		var raw []byte
		switch key = key[1:]; k {
		case kindInt:
			if len(key) < 8 {
				return nil, nil, errKey
			}
			raw = binary.BigEndian.AppendUint64(nil, binary.BigEndian.Uint64(key)^signBit)
			key = key[8:]
		case kindText, kindBytes:
			if raw, key, err = decodeText(key); err != nil {
				return nil, nil, err
			}
		default:
			size, flip := fixedSize(k)
			if size == 0 || len(key) < size {
				return nil, nil, errKey
			}
			raw, key = append(raw, key[:size]...), key[size:]
			if flip {
				raw[0] ^= 0x80
			}
		}
		kinds, raws = append(kinds, k), append(raws, raw)
	}
	return kinds, raws, nil
}

// decodeText undoes the escapes of appendColumn, and returns what follows the end of the text.
func decodeText(key []byte) (raw, rest []byte, err error) {
	raw = []byte{}
	for {
		if len(key) == 0 || key[0] == 0 && len(key) == 1 {
			return nil, nil, errKey
		}
		switch {
		case key[0] != 0:
			raw, key = append(raw, key[0]), key[1:]
		case key[1] == 0xff:
			raw, key = append(raw, 0), key[2:]
		case key[1] == 1:
			return raw, key[2:], nil
		default:
			return nil, nil, errKey
		}
	}
}
