package pgsource

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"
)

// value is a column's value, in a form that Go can compare, and its binary form.
type value struct {
	kind kind
	n    int64
	b    []byte
	raw  []byte
}

func (v value) compare(o value) int {
	switch v.kind {
	case kindText, kindBytes, kindUUID:
		return bytes.Compare(v.b, o.b)
	case kindXID:
		return cmp.Compare(uint64(v.n), uint64(o.n))
	default:
		return cmp.Compare(v.n, o.n)
	}
}

// column draws values of one kind; small ranges and few letters, so that values are often equal or prefixes of each other.
func column(k kind, width int) *rapid.Generator[value] {
	return rapid.Custom(func(t *rapid.T) value {
		v := value{kind: k}
		number := func(width int) {
			bits := width * 8
			v.n = rapid.OneOf(rapid.Int64Range(-3, 3), rapid.Int64Range(-1<<(bits-1), 1<<(bits-1)-1)).Draw(t, "n")
			v.raw = binary.BigEndian.AppendUint64(nil, uint64(v.n))[8-width:]
		}
		switch k {
		case kindInt:
			number(width)
		case kindTimestamp, kindTimeTZ:
			number(8)
		case kindDate:
			number(4)
		case kindBool:
			v.n = rapid.Int64Range(0, 1).Draw(t, "n")
			v.raw = []byte{byte(v.n)}
		case kindXID:
			number(8)
		case kindUUID:
			v.b = rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 0x7f, 0x80, 0xff}), 16, 16).Draw(t, "uuid")
			v.raw = v.b
		case kindText:
			v.b = rapid.SliceOfN(rapid.SampledFrom([]byte{1, 'a', 'b', 0xc3, 0xff}), 0, 4).Draw(t, "text")
			v.raw = v.b
		case kindBytes:
			v.b = rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 0xfe, 0xff}), 0, 4).Draw(t, "bytes")
			v.raw = v.b
		}
		return v
	})
}

func TestKeyOrderIsTupleOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kinds := rapid.SliceOfN(rapid.SampledFrom([]kind{kindInt, kindText, kindBytes, kindUUID, kindTimestamp, kindTimeTZ, kindDate, kindBool, kindXID}), 1, 4).Draw(t, "kinds")
		var left, right []value
		for _, k := range kinds {
			a := column(k, rapid.SampledFrom([]int{2, 4, 8}).Draw(t, "left width")).Draw(t, "left")
			b := a
			if rapid.Bool().Draw(t, "differ") {
				b = column(k, rapid.SampledFrom([]int{2, 4, 8}).Draw(t, "right width")).Draw(t, "right")
			}
			left, right = append(left, a), append(right, b)
		}
		want := 0
		for i := range left {
			if want = left[i].compare(right[i]); want != 0 {
				break
			}
		}
		a, b := encode(t, left), encode(t, right)
		if got := bytes.Compare(a, b); got != want {
			t.Fatalf("keys %x and %x compare as %d, the tuples as %d", a, b, got, want)
		}
		// The key of the first columns alone, as a bookmark has it, is before all that begin with them.
		if prefix := encode(t, left[:len(left)-1]); bytes.Compare(prefix, a) >= 0 {
			t.Fatalf("the key of the first columns, %x, is not before %x", prefix, a)
		}
		decoded, raws, err := decodeKey(a)
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range left {
			raw := v.raw
			if v.kind == kindInt { // all widths come back as int8
				raw = binary.BigEndian.AppendUint64(nil, uint64(v.n))
			}
			if decoded[i] != v.kind || !bytes.Equal(raws[i], raw) {
				t.Fatalf("column %d came back as kind %d, %x; expected %d, %x", i, decoded[i], raws[i], v.kind, raw)
			}
		}
	})
}

func encode(t *rapid.T, values []value) (key []byte) {
	for _, v := range values {
		var err error
		if key, err = appendColumn(key, v.kind, v.raw); err != nil {
			t.Fatal(err)
		}
	}
	return key
}

// What is no key is refused, never misread: what is read gives the same bytes again.
func FuzzDecodeKey(f *testing.F) {
	f.Add([]byte{byte(kindInt), 0x80, 0, 0, 0, 0, 0, 0, 1})
	f.Add([]byte{byte(kindText), 'a', 0, 1, byte(kindBytes), 0, 0xff, 0, 1})
	f.Add([]byte{byte(kindText), 'a', 0})
	f.Add([]byte{byte(kindBool), 1, byte(kindDate), 0x80, 0, 0, 0})
	f.Add([]byte{99})
	f.Fuzz(func(t *testing.T, key []byte) {
		kinds, raws, err := decodeKey(key)
		if err != nil {
			return
		}
		var again []byte
		for i, k := range kinds {
			if again, err = appendColumn(again, k, raws[i]); err != nil {
				t.Fatalf("%x was read as %d %x, which cannot be written: %v", key, kinds, raws, err)
			}
		}
		if !bytes.Equal(again, key) {
			t.Fatalf("%x was read as %d %x, which is written %x", key, kinds, raws, again)
		}
	})
}

func TestAppendColumnRefusesOtherSizes(t *testing.T) {
	for k := range sqlType {
		if k == kindText || k == kindBytes {
			continue
		}
		if _, err := appendColumn(nil, k, []byte{1, 2, 3}); err == nil {
			t.Errorf("a %s of 3 bytes was taken", sqlType[k])
		}
	}
}
