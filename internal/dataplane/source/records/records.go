// Package records cuts a stream of bytes into messages: lines, JSON values, CSV records. It does no I/O: its caller fills it.
package records

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"

	"github.com/levada-io/levada/internal/flow"
)

// Format says how a stream is cut. The names are those of the manifest.
type Format string

// The formats.
const (
	// Lines makes a message of each line, also of an empty one, without its "\n" or "\r\n".
	Lines Format = "lines"
	// NDJSON makes a message of each line, which must be one JSON value. Blank lines are skipped.
	NDJSON Format = "ndjson"
	// CSV makes a message of each record as encoding/csv reads it: a JSON object of the header's columns in their order, or an array.
	CSV Format = "csv"
)

// Config of a Splitter. The zero value of a field is its default.
type Config struct {
	// Format is Lines by default.
	Format Format
	// NoHeader says that the first record of a CSV stream is a message like the others, all of which become arrays.
	NoHeader bool
	// Delimiter separates the fields of a CSV record. Default ','. See ParseDelimiter.
	Delimiter byte
	// OnMalformed says what becomes of a record that cannot be read. Default DeadLetter.
	OnMalformed Policy
	// MaxRecord is the largest record in bytes. Default 16 MiB. A longer one is malformed.
	MaxRecord int
	// ChunkSize is how much is read at once, at least. Messages share the memory of their chunk. Default 256 KiB: it fits into a core's
	// second-level cache, so that the search for the ends of lines finds there what the read has just put in.
	ChunkSize int
}

// Splitter turns bytes into messages whose positions are the offsets at which their records start, plus one.
// It is not safe for concurrent use.
type Splitter struct {
	cfg Config
	// next cuts the first record off buf. n is 0 while more bytes are needed to know where it ends; value is nil for what is not a message.
	// It is nil for lines, which have a loop of their own.
	// With an error n is where the next record starts, as far as that is known.
	next func(buf []byte, eof bool) (n int, value []byte, err error)
	csv  *csvCutter

	// long is the record that is too long and whose end was not yet read, longRaw its first bytes. Its bytes are dropped as they come. While it is
	// set, offset is inside of the record: no batch may end there, so it is only set in a call of Cut that returns no message.
	long    *Error
	longRaw []byte

	buf     []byte // a chunk: all before r is cut, all before w was read
	r, w    int
	offset  uint64 // of buf[r] in the stream
	lines   uint64 // line ends before offset, since the stream or the last Seek
	average int    // bytes of a record, roughly
}

// An Error says that a record cannot be read.
type Error struct {
	// Offset is where the record starts, Fault the byte where it goes wrong.
	Offset, Fault uint64
	// Line is how many line ends lie before the fault, after the start or the last Seek.
	Line uint64
	// Index is the place of the record's raw bytes in the messages that were cut, -1 if it was skipped. Size is how many bytes it has; the
	// message has the first MaxRaw of a record that is too long, and otherwise all.
	Index  int
	Size   uint64
	Reason error
}

// MaxRaw is how much is kept of a record that is too long.
const MaxRaw = 64 << 10

func (e *Error) Error() string { return e.Reason.Error() }
func (e *Error) Unwrap() error { return e.Reason }

// Reasons that callers match with errors.Is.
var (
	ErrTooLong = errors.New("record is too long")
	ErrSyntax  = errors.New("record is malformed")
	// ErrEncoding means that the whole stream is in an encoding that is not read.
	ErrEncoding = errors.New("not UTF-8")
)

var bom = []byte("\xef\xbb\xbf")

// New returns a Splitter at offset 0. Errors name the field of the configuration.
func New(cfg Config) (*Splitter, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	s := &Splitter{cfg: cfg, average: 256}
	switch cfg.Format {
	case NDJSON:
		s.next = nextJSON
	case CSV:
		s.csv = &csvCutter{delimiter: cfg.Delimiter, wantHeader: !cfg.NoHeader}
		s.next = s.csv.next
	}
	return s, nil
}

func (c Config) withDefaults() Config {
	c.Format = cmp.Or(c.Format, Lines)
	c.MaxRecord = cmp.Or(c.MaxRecord, 16<<20)
	c.ChunkSize = cmp.Or(c.ChunkSize, 256<<10)
	c.Delimiter = cmp.Or(c.Delimiter, ',')
	return c
}

func (c Config) validate() error {
	switch c.Format {
	case Lines, NDJSON, CSV:
	default:
		return fmt.Errorf("format: %q is not known: use lines, ndjson or csv", c.Format)
	}
	switch c.OnMalformed {
	case "", DeadLetter, Skip, Fail:
	default:
		return fmt.Errorf("onMalformed: %q is not known: use deadLetter, skip or fail", c.OnMalformed)
	}
	if c.MaxRecord < 0 || c.ChunkSize < 0 {
		return fmt.Errorf("maxRecord %d and chunkSize %d must not be negative", c.MaxRecord, c.ChunkSize)
	}
	return nil
}

// Room is where the next bytes of the stream are to be put; Fed says how many were.
// It never lies over bytes that a message points to.
func (s *Splitter) Room() []byte {
	if free := len(s.buf) - s.w; free > 0 && free >= s.cfg.ChunkSize/8 {
		return s.buf[s.w:]
	}
	rest := s.buf[s.r:s.w]
	chunk := make([]byte, max(s.cfg.ChunkSize, 2*len(rest)))
	s.w = copy(chunk, rest)
	s.r, s.buf = 0, chunk
	return chunk[s.w:]
}

// Fed says that n bytes were put into Room.
func (s *Splitter) Fed(n int) { s.w += n }

// Offset is where the next record starts.
func (s *Splitter) Offset() uint64 { return s.offset }

// End is the offset after the last byte fed.
func (s *Splitter) End() uint64 { return s.offset + uint64(s.w-s.r) }

// Average is the usual size of a record in bytes, as far as known.
func (s *Splitter) Average() int { return s.average }

// HeaderDone says that no CSV header is awaited any more.
func (s *Splitter) HeaderDone() bool { return s.csv == nil || !s.csv.wantHeader }

// Suspect is the character that separates the fields of the first CSV record, if that seems to be another than the delimiter; 0 if not.
func (s *Splitter) Suspect() byte {
	if s.csv == nil {
		return 0
	}
	return s.csv.suspect
}

// Seek forgets what was fed: the next bytes are those at offset.
func (s *Splitter) Seek(offset uint64) {
	s.r, s.w, s.buf, s.offset, s.lines = 0, 0, nil, offset, 0
	s.long, s.longRaw = nil, nil
}

// Cut returns up to limit messages from what was fed. eof says that no more will be, so that the last record needs no line end. With
// a limit of 0 it reads the header and no more.
//
// bad are the records that cannot be read; with the policy DeadLetter the raw bytes of each are among the messages. An error, which is an *Error, comes
// again on each further call. It may come with the messages before it. With the policy Fail each malformed record is one, and always a CSV header, without
// which no record can be read.
func (s *Splitter) Cut(limit int, now int64, eof bool) (out []flow.Message, bad []*Error, err error) {
	if s.offset == 0 && s.cfg.Format != Lines {
		rest := s.buf[s.r:s.w]
		switch {
		case bytes.HasPrefix(rest, bom):
			s.consume(len(bom))
		case len(rest) >= 2 && (rest[0] == 0xff && rest[1] == 0xfe || rest[0] == 0xfe && rest[1] == 0xff):
			return nil, nil, &Error{Index: -1, Reason: fmt.Errorf("%w: it begins with the byte order mark of UTF-16; convert it, for instance with iconv -f UTF-16 -t UTF-8", ErrEncoding)}
		case !eof && len(rest) < 2, !eof && bytes.HasPrefix(bom, rest):
			return nil, nil, nil
		}
	}
	if s.r == s.w && (s.long == nil || !eof) {
		return nil, nil, nil
	}
	if s.long != nil {
		out, bad = s.dropLong(now, eof)
		if s.long != nil || len(out) > 0 || limit == 0 {
			return out, bad, nil
		}
	}
	start := s.offset
	out = make([]flow.Message, 0, min(limit, (s.w-s.r)/max(s.average, 1)+1))
	if s.next == nil {
		out, bad, err = s.cutLines(out, bad, limit, now, eof)
	} else {
		out, bad, err = s.cutRecords(out, bad, limit, now, eof)
	}
	if s.long != nil && eof && s.r == s.w {
		out, bad = s.dropLong(now, eof)
	}
	if len(out) > 0 {
		s.average = max(1, int(s.offset-start)/len(out))
	}
	return out, bad, err
}

// add appends a message. It fills in fresh, zeroed memory what there is to fill in: copying whole messages costs more than finding them.
func (s *Splitter) add(out []flow.Message, value []byte, now int64) []flow.Message {
	return add(out, s.offset+1, value, now)
}

func add(out []flow.Message, pos uint64, value []byte, now int64) []flow.Message {
	n := len(out)
	if n < cap(out) {
		out = out[:n+1]
	} else {
		out = append(out, flow.Message{})
	}
	m := &out[n]
	m.Pos, m.Value, m.EventTime, m.Ingested = pos, value, now, now
	return out
}

func (s *Splitter) cutLines(out []flow.Message, bad []*Error, limit int, now int64, eof bool) ([]flow.Message, []*Error, error) {
	for len(out) < limit && s.r < s.w {
		line := s.buf[s.r:s.w]
		n := bytes.IndexByte(line, '\n')
		used := n + 1
		switch {
		case (n > s.cfg.MaxRecord || n < 0 && len(line) > s.cfg.MaxRecord) && s.isTooLong(line, n, eof):
			var done bool
			var err error
			if out, bad, done, err = s.malformed(out, bad, s.tooLong(), used, now); done || err != nil {
				return out, bad, err
			}
			continue
		case n >= 0:
			s.lines++
		case !eof:
			return out, bad, nil
		default:
			n, used = len(line), len(line)
		}
		if n > 0 && line[n-1] == '\r' {
			n--
		}
		out = s.add(out, line[:n:n], now)
		s.r += used
		s.offset += uint64(used)
	}
	return out, bad, nil
}

// isTooLong looks closer at a line whose last byte may be the "\r" of its end.
func (s *Splitter) isTooLong(line []byte, n int, eof bool) bool {
	if n >= 0 || eof {
		if n >= 0 {
			line = line[:n]
		}
		return len(bytes.TrimSuffix(line, []byte{'\r'})) > s.cfg.MaxRecord
	}
	return len(line) > s.cfg.MaxRecord+1
}

func (s *Splitter) cutRecords(out []flow.Message, bad []*Error, limit int, now int64, eof bool) ([]flow.Message, []*Error, error) {
	for (len(out) < limit || !s.HeaderDone()) && s.r < s.w {
		rest := s.buf[s.r:s.w]
		n, value, err := s.next(rest, eof)
		var fault *Error
		switch {
		case err != nil:
			fault = &Error{Offset: s.offset, Fault: s.offset, Line: s.lines, Reason: fmt.Errorf("%w: %w", ErrSyntax, err)}
			if at, ok := errors.AsType[faultAt](err); ok {
				fault.Fault += uint64(at.at)
				fault.Line += uint64(bytes.Count(rest[:at.at], []byte{'\n'}))
			}
		case n > s.cfg.MaxRecord+len("\r\n") || n == 0 && len(rest) > s.cfg.MaxRecord:
			fault = s.tooLong()
			if n == 0 { // where it ends is not known: most likely a quote that is not closed, so the next line is tried
				n = bytes.IndexByte(rest, '\n') + 1
			}
		case n == 0:
			return out, bad, nil
		}
		if fault != nil {
			var done bool
			if out, bad, done, err = s.malformed(out, bad, fault, n, now); done || err != nil {
				return out, bad, err
			}
			continue
		}
		if value != nil {
			out = s.add(out, value, now)
		}
		s.consume(n)
	}
	return out, bad, nil
}

// malformed deals with a record that cannot be read and has n bytes, 0 if its end is not known. done says that Cut must return.
func (s *Splitter) malformed(out []flow.Message, bad []*Error, fault *Error, n int, now int64) ([]flow.Message, []*Error, bool, error) {
	fault.Index = -1
	if s.cfg.OnMalformed == Fail || !s.HeaderDone() {
		return out, bad, true, fault
	}
	if n == 0 {
		if len(out) > 0 || len(bad) > 0 {
			return out, bad, true, nil // the next call begins with it
		}
		rest := s.buf[s.r:s.w]
		s.long, s.longRaw = fault, bytes.Clone(rest[:min(len(rest), MaxRaw)])
		s.consume(len(rest))
		return out, bad, true, nil
	}
	raw := bytes.TrimRight(s.buf[s.r:s.r+n:s.r+n], "\r\n")
	if errors.Is(fault, ErrTooLong) {
		raw = bytes.Clone(raw[:min(len(raw), MaxRaw)]) // or the message would keep all of the chunk
	}
	fault.Size = uint64(n)
	out, bad = s.report(out, bad, fault, raw, now)
	s.consume(n)
	return out, bad, false, nil
}

func (s *Splitter) report(out []flow.Message, bad []*Error, fault *Error, raw []byte, now int64) ([]flow.Message, []*Error) {
	if s.cfg.OnMalformed != Skip {
		fault.Index = len(out)
		out = add(out, fault.Offset+1, raw, now)
	}
	return out, append(bad, fault)
}

// dropLong drops what was fed up to the end of the record that is too long.
func (s *Splitter) dropLong(now int64, eof bool) (out []flow.Message, bad []*Error) {
	rest := s.buf[s.r:s.w]
	n := bytes.IndexByte(rest, '\n')
	if n >= 0 {
		rest = rest[:n]
	}
	s.longRaw = append(s.longRaw, rest[:min(len(rest), MaxRaw-len(s.longRaw))]...)
	if n < 0 {
		s.consume(s.w - s.r)
		if !eof {
			return nil, nil
		}
	} else {
		s.consume(n + 1)
	}
	fault, raw := s.long, bytes.TrimRight(s.longRaw, "\r")
	s.long, s.longRaw = nil, nil
	fault.Size = s.offset - fault.Offset
	return s.report(nil, nil, fault, raw, now)
}

func (s *Splitter) consume(n int) {
	s.lines += uint64(bytes.Count(s.buf[s.r:s.r+n], []byte{'\n'}))
	s.r += n
	s.offset += uint64(n)
}

func (s *Splitter) tooLong() *Error {
	return &Error{Offset: s.offset, Fault: s.offset, Line: s.lines, Reason: fmt.Errorf("%w: it has more than %d bytes", ErrTooLong, s.cfg.MaxRecord)}
}
