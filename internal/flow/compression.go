package flow

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Compression says how the body of a block is compressed. The numbers are stored in blocks and never change.
type Compression byte

// The kinds of compression of Numaflow's interStepBuffer.compression.type.
const (
	None Compression = iota
	Gzip
	Zstd
	LZ4
)

// ParseCompression reads a name in either case, as users of Numaflow write both. Empty is None.
func ParseCompression(name string) (Compression, error) {
	switch strings.ToLower(name) {
	case "", "none":
		return None, nil
	case "gzip":
		return Gzip, nil
	case "zstd":
		return Zstd, nil
	case "lz4":
		return LZ4, nil
	}
	return None, fmt.Errorf("unknown compression %q: use none, gzip, zstd or lz4", name)
}

func (c Compression) String() string {
	switch c {
	case None:
		return "none"
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	case LZ4:
		return "lz4"
	}
	return fmt.Sprintf("compression(%d)", byte(c))
}

// Coders are costly to make and safe to use again; zstd's are safe for concurrent use in their whole-buffer form.
var (
	zstdEncoder = sync.OnceValue(func() *zstd.Encoder { e, _ := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest)); return e })
	gzipWriters = sync.Pool{New: func() any { w, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed); return w }}
	lz4Writers  = sync.Pool{New: func() any { return lz4.NewWriter(nil) }}
)

func (c Compression) compress(dst, body []byte) ([]byte, error) {
	switch c {
	case None:
		return append(dst, body...), nil
	case Zstd:
		return zstdEncoder().EncodeAll(body, dst), nil
	case Gzip:
		w := gzipWriters.Get().(*gzip.Writer)
		defer gzipWriters.Put(w)
		buf := bytes.NewBuffer(dst)
		w.Reset(buf)
		return writeAll(buf, w, body)
	case LZ4:
		w := lz4Writers.Get().(*lz4.Writer)
		defer lz4Writers.Put(w)
		buf := bytes.NewBuffer(dst)
		w.Reset(buf)
		return writeAll(buf, w, body)
	}
	return nil, fmt.Errorf("unknown %v", c)
}

func writeAll(buf *bytes.Buffer, w io.WriteCloser, body []byte) ([]byte, error) {
	if _, err := w.Write(body); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// decompress returns the plain body, of which it makes no more than size bytes: a small block cannot fill the memory.
func (c Compression) decompress(body []byte, size int) ([]byte, error) {
	switch c {
	case None:
		return body, nil
	case Zstd, Gzip, LZ4:
	default:
		return nil, fmt.Errorf("unknown %v", c)
	}
	var r io.Reader
	switch c {
	case Zstd:
		d, err := zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderMaxMemory(MaxBlockBytes), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		defer d.Close()
		r = d
	case Gzip:
		g, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		r = g
	case LZ4:
		r = lz4.NewReader(bytes.NewReader(body))
	}
	// Grow as bytes arrive: the size in the header is only believed once there are that many.
	var out bytes.Buffer
	out.Grow(min(size, 1<<20) + 1)
	if _, err := out.ReadFrom(io.LimitReader(r, int64(size)+1)); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
