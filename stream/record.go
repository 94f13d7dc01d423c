package stream

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"math/bits"
)

// Record is one piece of a stream.
type Record struct {
	// Seq is the record's number in its stream. The first has number 1, and there is no hole.
	Seq uint64
	// Key is the order key. Keys grow strictly, compared byte by byte.
	Key []byte
	// Value is the payload. It is only valid until the call that it was handed to returns.
	Value []byte
	// Bad says why the producer could not make this record; Value is empty then. Workers put such a record into
	// quarantine (or halt) and never pass it to a handler.
	Bad string

	sum uint32 // checksum of key and value, one after the other, where the record came off the wire
}

// size is what the record counts as, in bytes.
func (r Record) size() int { return len(r.Key) + len(r.Value) }

// Digest identifies a set of numbered records: it is the sum, modulo 2^128, of a hash of each record's number, key
// and value. So it does not depend on how records were grouped, and can be summed up over the rows of a table in any
// order. It finds loss, duplication, exchange and damage by accident; it does not protect against forgery.
type Digest [16]byte

// castagnoli has an instruction of its own on amd64 and arm64.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Add adds a record.
func (d *Digest) Add(r Record) {
	sum := crc32.Update(crc32.Update(0, castagnoli, r.Key), castagnoli, r.Value)
	d.add(r.Seq, len(r.Key), len(r.Value), sum)
}

// add adds a record of which only the checksum of key and value, one after the other, is known.
func (d *Digest) add(seq uint64, key, value int, sum uint32) {
	// The number and the content go through a mixer together; both halves depend on every bit of either.
	// The constants are those of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
	content := uint64(sum)<<32 ^ uint64(key)<<48 ^ uint64(value)
	a := mix(seq*0x9e3779b97f4a7c15 + 0x9e3779b97f4a7c15)
	b := mix(a ^ content)
	low, high := binary.LittleEndian.Uint64(d[:8]), binary.LittleEndian.Uint64(d[8:])
	low, carry := bits.Add64(low, b, 0)
	high, _ = bits.Add64(high, mix(b+a), carry)
	binary.LittleEndian.PutUint64(d[:8], low)
	binary.LittleEndian.PutUint64(d[8:], high)
}

func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText is String: 32 hexadecimal digits.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(d)) {
		return fmt.Errorf("a digest has %d hexadecimal digits, this one %d", hex.EncodedLen(len(d)), len(text))
	}
	_, err := hex.Decode(d[:], text)
	return err
}
