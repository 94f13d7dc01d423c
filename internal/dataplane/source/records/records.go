// Package records cuts a stream of bytes into messages: lines, JSON values, CSV records. It does no I/O: its caller fills it.
package records

import (
	"bytes"
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
	// MaxRecord is the largest record in bytes. Default 16 MiB.
	MaxRecord int
	// ChunkSize is how much is read at once, at least. Messages share the memory of their chunk. Default 256 KiB: it fits into a core's
	// second-level cache, so that the search for the ends of lines finds there what the read has just put in.
	ChunkSize int
}

// Splitter turns bytes into messages whose positions are the offsets at which their records start, plus one.
// It is not safe for concurrent use.
type Splitter struct {
	cfg Config
	// next cuts the first record off buf. n is 0 while more bytes are needed to know where it ends; value is nil for what is no message.
	// It is nil for lines, which have a loop of their own.
	next func(buf []byte, eof bool) (n int, value []byte, err error)
	csv  *csvCutter

	buf     []byte // a chunk: all before r is cut, all before w was read
	r, w    int
	offset  uint64 // of buf[r] in the stream
	lines   uint64 // line ends before offset, since the stream or the last Seek
	average int    // bytes of a record, roughly
}

// An Error says that a record cannot be read. The records before it were cut, and it comes again on each further call.
type Error struct {
	// Offset is where the record starts, Fault the byte where it goes wrong.
	Offset, Fault uint64
	// Line is how many line ends lie before the fault, after the start or the last Seek.
	Line   uint64
	Reason error
}

func (e *Error) Error() string { return e.Reason.Error() }
func (e *Error) Unwrap() error { return e.Reason }

// Reasons that callers match with errors.Is.
var (
	ErrTooLong = errors.New("record is too long")
	ErrSyntax  = errors.New("record is malformed")
)

var bom = []byte("\xef\xbb\xbf")

// New returns a Splitter at offset 0. Errors name the field of the configuration.
func New(cfg Config) (*Splitter, error) {
	if cfg.Format == "" {
		cfg.Format = Lines
	}
	if cfg.MaxRecord == 0 {
		cfg.MaxRecord = 16 << 20
	}
	if cfg.ChunkSize == 0 {
		cfg.ChunkSize = 256 << 10
	}
	s := &Splitter{cfg: cfg, average: 256}
	switch cfg.Format {
	case Lines:
	case NDJSON:
		s.next = nextJSON
	case CSV:
		s.csv = &csvCutter{wantHeader: !cfg.NoHeader}
		s.next = s.csv.next
	default:
		return nil, fmt.Errorf("format: %q is not known: use lines, ndjson or csv", cfg.Format)
	}
	if cfg.MaxRecord < 0 || cfg.ChunkSize < 0 {
		return nil, fmt.Errorf("maxRecord %d and chunkSize %d must not be negative", cfg.MaxRecord, cfg.ChunkSize)
	}
	return s, nil
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

// Seek forgets what was fed: the next bytes are those at offset.
func (s *Splitter) Seek(offset uint64) {
	s.r, s.w, s.buf, s.offset, s.lines = 0, 0, nil, offset, 0
}

// Cut returns up to limit messages from what was fed. eof says that no more will be, so that the last record needs no line end. With
// a limit of 0 it reads the header and no more. An error, which is an *Error, may come with the messages before it.
func (s *Splitter) Cut(limit int, now int64, eof bool) ([]flow.Message, error) {
	if s.offset == 0 && s.cfg.Format != Lines {
		if rest := s.buf[s.r:s.w]; bytes.HasPrefix(rest, bom) {
			s.consume(len(bom))
		} else if !eof && bytes.HasPrefix(bom, rest) {
			return nil, nil
		}
	}
	if s.r == s.w {
		return nil, nil
	}
	start := s.offset
	out := make([]flow.Message, 0, min(limit, (s.w-s.r)/max(s.average, 1)+1))
	var err error
	if s.next == nil {
		out, err = s.cutLines(out, limit, now, eof)
	} else {
		out, err = s.cutRecords(out, limit, now, eof)
	}
	if len(out) > 0 {
		s.average = int(s.offset-start) / len(out)
	}
	return out, err
}

// add appends a message. It fills in fresh, zeroed memory what there is to fill in: copying whole messages costs more than finding them.
func (s *Splitter) add(out []flow.Message, value []byte, now int64) []flow.Message {
	n := len(out)
	if n < cap(out) {
		out = out[:n+1]
	} else {
		out = append(out, flow.Message{})
	}
	m := &out[n]
	m.Pos, m.Value, m.EventTime, m.Ingested = s.offset+1, value, now, now
	return out
}

func (s *Splitter) cutLines(out []flow.Message, limit int, now int64, eof bool) ([]flow.Message, error) {
	for len(out) < limit && s.r < s.w {
		line := s.buf[s.r:s.w]
		n := bytes.IndexByte(line, '\n')
		used := n + 1
		switch {
		case n > s.cfg.MaxRecord || n < 0 && len(line) > s.cfg.MaxRecord:
			return out, s.tooLong()
		case n >= 0:
			s.lines++
		case !eof:
			return out, nil
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
	return out, nil
}

func (s *Splitter) cutRecords(out []flow.Message, limit int, now int64, eof bool) ([]flow.Message, error) {
	for (len(out) < limit || !s.HeaderDone()) && s.r < s.w {
		rest := s.buf[s.r:s.w]
		n, value, err := s.next(rest, eof)
		if err != nil {
			bad := &Error{Offset: s.offset, Fault: s.offset, Line: s.lines, Reason: fmt.Errorf("%w: %w", ErrSyntax, err)}
			if at, ok := errors.AsType[faultAt](err); ok {
				bad.Fault += uint64(at.at)
				bad.Line += uint64(bytes.Count(rest[:at.at], []byte{'\n'}))
			}
			return out, bad
		}
		if n > s.cfg.MaxRecord || n == 0 && len(rest) > s.cfg.MaxRecord {
			return out, s.tooLong()
		}
		if n == 0 {
			return out, nil
		}
		if value != nil {
			out = s.add(out, value, now)
		}
		s.consume(n)
	}
	return out, nil
}

func (s *Splitter) consume(n int) {
	s.lines += uint64(bytes.Count(s.buf[s.r:s.r+n], []byte{'\n'}))
	s.r += n
	s.offset += uint64(n)
}

func (s *Splitter) tooLong() error {
	return &Error{Offset: s.offset, Fault: s.offset, Line: s.lines, Reason: fmt.Errorf("%w: it has more than %d bytes", ErrTooLong, s.cfg.MaxRecord)}
}
