package filesink

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/levada-io/levada/internal/dataplane/identity"
	"github.com/levada-io/levada/internal/flow"
)

// The journal says which blocks the data file holds, and where the last of them ends. It is a sequence of records
//
//	"LvJ1" len(payload) crc32c(payload), 4 bytes little endian each, payload
//
// of which the first is a snapshot and all others are commits. Payloads, with uvarints:
//
//	'S' version end len(seen) seen count(ids) {time id} device inode
//	'C' end time count(blocks) {flags lane lo hi-lo floor [count(ids) {id}]}
//
// A commit without blocks says that the sink was closed: what lies behind the end of the data then is not ours.
//
// A commit is written after its data is on the disk, so what it names is there. A record that is not whole was never confirmed to anybody.
const (
	journalVersion = 2 // 1 had no device and inode
	recordHead     = 12
	kindSnapshot   = 'S'
	kindCommit     = 'C'
	flagByID       = 1
)

var (
	recordMagic = []byte("LvJ1")
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
)

// ErrCorrupt means that the journal was damaged after it had been written.
var ErrCorrupt = errors.New("journal is corrupt")

// errMalformed means a record whose checksum is right and whose content makes no sense: no crash leaves that.
var errMalformed = errors.New("malformed record")

// state is what a journal says.
type state struct {
	end  int64
	seen *identity.Seen
	// id is the data file, zero if it is not known; at is the time of the last commit.
	id fileID
	at time.Time
	// closed says that the last record, which begins at last, is that of a Close.
	closed bool
	last   int
	// ids are the recent ids of lanes without positions, oldest first; kept only on demand, since seen has its own.
	ids     []seenID
	keepIDs bool
}

// fileID tells a file from another one that has or had its name.
type fileID struct{ device, inode uint64 }

type seenID struct {
	at time.Time
	id string
}

// beginRecord leaves room for the head of a record; endRecord fills it in.
func beginRecord(b []byte) []byte { return append(b, make([]byte, recordHead)...) }

func endRecord(b []byte, start int) []byte {
	payload := b[start+recordHead:]
	copy(b[start:], recordMagic)
	binary.LittleEndian.PutUint32(b[start+4:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(b[start+8:], crc32.Checksum(payload, castagnoli))
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// appendSnapshot appends a record that takes the place of all before it.
func appendSnapshot(b []byte, end int64, seen *identity.Seen, ids []seenID, id fileID) []byte {
	start := len(b)
	b = append(beginRecord(b), kindSnapshot, journalVersion)
	b = binary.AppendUvarint(b, uint64(end))
	b = appendString(b, string(seen.Marshal()))
	b = binary.AppendUvarint(b, uint64(len(ids)))
	for _, s := range ids {
		b = binary.AppendVarint(b, s.at.UnixNano())
		b = appendString(b, s.id)
	}
	b = binary.AppendUvarint(b, id.device)
	b = binary.AppendUvarint(b, id.inode)
	return endRecord(b, start)
}

// appendCommit appends the head of a commit; appendBlock adds its blocks.
func appendCommit(b []byte, end int64, now time.Time, blocks int) []byte {
	b = append(b, kindCommit)
	b = binary.AppendUvarint(b, uint64(end))
	b = binary.AppendVarint(b, now.UnixNano())
	return binary.AppendUvarint(b, uint64(blocks))
}

func appendBlock(b []byte, block *flow.Block) []byte {
	var flags byte
	if block.ByID {
		flags |= flagByID
	}
	b = appendString(append(b, flags), block.Lane)
	b = binary.AppendUvarint(b, block.Lo)
	b = binary.AppendUvarint(b, block.Hi-block.Lo)
	b = binary.AppendUvarint(b, block.Floor)
	if block.ByID {
		b = binary.AppendUvarint(b, uint64(len(block.Messages)))
		for i := range block.Messages {
			b = appendString(b, block.Messages[i].ID)
		}
	}
	return b
}

// replay reads a journal into s and returns the length of its valid part. What follows that is the end of a write that a crash cut off; if
// a whole record comes later, it is not, and the error is ErrCorrupt.
func (s *state) replay(journal []byte) (valid int, err error) {
	for valid < len(journal) {
		payload, n := cutRecord(journal[valid:])
		if n == 0 {
			break
		}
		if err := s.apply(payload, valid == 0); err != nil {
			return valid, fmt.Errorf("%w at byte %d: %w", ErrCorrupt, valid, err)
		}
		s.last = valid
		valid += n
	}
	if valid == 0 {
		return 0, fmt.Errorf("%w: it does not begin with a snapshot", ErrCorrupt)
	}
	for rest := journal[valid:]; ; {
		i := bytes.Index(rest, recordMagic)
		if i < 0 {
			return valid, nil
		}
		rest = rest[i:]
		if _, n := cutRecord(rest); n > 0 {
			return valid, fmt.Errorf("%w at byte %d: valid records follow what is not valid there", ErrCorrupt, valid)
		}
		rest = rest[1:]
	}
}

// cutRecord returns the first record's payload and its whole length; 0 if there is no whole record.
func cutRecord(b []byte) (payload []byte, n int) {
	if len(b) < recordHead || !bytes.HasPrefix(b, recordMagic) {
		return nil, 0
	}
	size := int64(binary.LittleEndian.Uint32(b[4:]))
	if size == 0 || size > int64(len(b)-recordHead) {
		return nil, 0
	}
	payload = b[recordHead : recordHead+size]
	if crc32.Checksum(payload, castagnoli) != binary.LittleEndian.Uint32(b[8:]) {
		return nil, 0
	}
	return payload, recordHead + int(size)
}

func (s *state) apply(payload []byte, first bool) error {
	r := &reader{b: payload[1:]}
	switch kind := payload[0]; {
	case kind == kindSnapshot && first:
		return s.applySnapshot(r)
	case kind == kindCommit && !first:
		return s.applyCommit(r)
	}
	return fmt.Errorf("%w of kind %q", errMalformed, payload[0])
}

func (s *state) applySnapshot(r *reader) error {
	version := r.uvarint()
	if version > journalVersion && !r.bad {
		return fmt.Errorf("it was written by a newer version of Levada (format %d, this one knows %d)", version, journalVersion)
	}
	s.end = int64(r.uvarint())
	if err := s.seen.Unmarshal(r.bytes()); err != nil {
		return err
	}
	for range r.count() {
		at, id := time.Unix(0, r.varint()), string(r.bytes())
		s.admitID(id, at)
	}
	if version >= 2 {
		s.id = fileID{device: r.uvarint(), inode: r.uvarint()}
	}
	return r.done(s.end)
}

func (s *state) applyCommit(r *reader) error {
	before := s.end
	s.end = int64(r.uvarint())
	at := time.Unix(0, r.varint())
	s.at = at
	blocks := r.count()
	s.closed = blocks == 0
	for range blocks {
		flags := r.byte()
		b := flow.Block{Lane: string(r.bytes()), Lo: r.uvarint()}
		b.Hi = b.Lo + r.uvarint()
		b.Floor = r.uvarint()
		if flags&flagByID != 0 {
			for range r.count() {
				s.admitID(string(r.bytes()), at)
			}
			continue
		}
		if r.bad || b.Hi < b.Lo || flags != 0 {
			return errMalformed
		}
		s.seen.Admit(&b, at)
	}
	if s.end < before {
		return fmt.Errorf("%w: the data ends at %d after it had ended at %d", errMalformed, s.end, before)
	}
	return r.done(s.end)
}

func (s *state) admitID(id string, at time.Time) {
	s.seen.Admit(&flow.Block{ByID: true, Messages: []flow.Message{{ID: id}}}, at)
	if s.keepIDs {
		s.ids = append(s.ids, seenID{at, id})
	}
}

// reader takes values off the front of b. After the first failure it is bad and returns zeros.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fail() { r.b, r.bad = nil, true }

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail()
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count reads how many things follow, each of which takes a byte at least.
func (r *reader) count() uint64 {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.fail()
		return 0
	}
	return n
}

func (r *reader) bytes() []byte {
	n := r.count()
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

// done checks that all was read and that the data's end can be one.
func (r *reader) done(end int64) error {
	if r.bad || len(r.b) != 0 || end < 0 {
		return errMalformed
	}
	return nil
}
