package stream

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// A token names a position between two records. It is the producer's: readers only keep it and give it back. It holds all
// that any replica of the producer needs to go on, so producers keep nothing about their readers.
//
//	version 1 byte | CRC-32C of all that follows 4, big endian | fingerprint 8 | generation 8 | seq 8, big endian | digest 16 |
//	key, to the end
//
// The checksum is there because tokens lie in the readers' databases for long: a damaged key would be another position, and the
// records between the two would be lost, or come twice, undetected.
type token struct {
	fingerprint, generation [8]byte
	seq                     uint64 // of the last record before the position
	digest                  Digest // of records 1 to seq
	key                     []byte // of that record, or of one that was passed over after it
}

const (
	tokenVersion = 1
	tokenHead    = 1 + 4 + 8 + 8 + 8 + 16
)

func (t token) appendTo(b []byte) []byte {
	start := len(b)
	b = append(b, tokenVersion, 0, 0, 0, 0)
	b = append(b, t.fingerprint[:]...)
	b = append(b, t.generation[:]...)
	b = binary.BigEndian.AppendUint64(b, t.seq)
	b = append(b, t.digest[:]...)
	b = append(b, t.key...)
	binary.BigEndian.PutUint32(b[start+1:], crc32.Checksum(b[start+5:], castagnoli))
	return b
}

func parseToken(b []byte) (t token, err error) {
	if len(b) < tokenHead {
		return t, fmt.Errorf("%w: a token has at least %d bytes, this one %d", ErrBadToken, tokenHead, len(b))
	}
	if b[0] != tokenVersion {
		return t, fmt.Errorf("%w: its version is %d, and this producer knows %d", ErrBadToken, b[0], tokenVersion)
	}
	if binary.BigEndian.Uint32(b[1:]) != crc32.Checksum(b[5:], castagnoli) {
		return t, fmt.Errorf("%w: it is damaged, or was not made by a producer", ErrBadToken)
	}
	copy(t.fingerprint[:], b[5:])
	copy(t.generation[:], b[13:])
	t.seq = binary.BigEndian.Uint64(b[21:])
	copy(t.digest[:], b[29:])
	t.key = b[tokenHead:]
	if t.seq > 0 && len(t.key) == 0 {
		return t, fmt.Errorf("%w: it has no key", ErrBadToken)
	}
	return t, nil
}

// fingerprint hashes texts so that no two lists of texts look alike.
func fingerprint(texts ...string) (f [8]byte) {
	h := sha256.New()
	for _, text := range texts {
		fmt.Fprintf(h, "%d:%s", len(text), text)
	}
	copy(f[:], h.Sum(nil))
	return f
}
