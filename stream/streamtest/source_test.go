package streamtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/levada-io/levada/stream"
)

func tenRecords() []stream.Record {
	var all []stream.Record
	for i := range 10 {
		all = append(all, stream.Record{Key: fmt.Appendf(nil, "key %02d", i), Value: fmt.Appendf(nil, "value %d", i)})
	}
	return all
}

// wrongSource is a good source and cursor but for what a test makes wrong.
type wrongSource struct {
	stream.Source
	wrap       func(q stream.Query, c stream.Cursor) stream.Cursor
	generation func() string
}

func (s wrongSource) Open(ctx context.Context, q stream.Query) (stream.Cursor, error) {
	c, err := s.Source.Open(ctx, q)
	if err != nil || s.wrap == nil {
		return c, err
	}
	return s.wrap(q, c), nil
}

func (s wrongSource) Generation(context.Context, stream.Query) (string, error) {
	if s.generation == nil {
		return "", nil
	}
	return s.generation(), nil
}

type wrongCursor struct {
	stream.Cursor
	next  func(ctx context.Context) ([]byte, error)
	value func(dst []byte) ([]byte, error)
	close func() error
}

func (c wrongCursor) Next(ctx context.Context) ([]byte, error) {
	if c.next == nil {
		return c.Cursor.Next(ctx)
	}
	return c.next(ctx)
}

func (c wrongCursor) Value(dst []byte) ([]byte, error) {
	if c.value == nil {
		return c.Cursor.Value(dst)
	}
	return c.value(dst)
}

func (c wrongCursor) Close() error {
	if c.close == nil {
		return c.Cursor.Close()
	}
	return c.close()
}

// Each of these faults has been made by somebody; the suite finds all of them.
func TestSourceChecksFindFaults(t *testing.T) {
	next := func(f func(c stream.Cursor, ctx context.Context) ([]byte, error)) func(stream.Query, stream.Cursor) stream.Cursor {
		return func(_ stream.Query, c stream.Cursor) stream.Cursor {
			return wrongCursor{Cursor: c, next: func(ctx context.Context) ([]byte, error) { return f(c, ctx) }}
		}
	}
	value := func(f func(c stream.Cursor, dst []byte) ([]byte, error)) func(stream.Query, stream.Cursor) stream.Cursor {
		return func(_ stream.Query, c stream.Cursor) stream.Cursor {
			return wrongCursor{Cursor: c, value: func(dst []byte) ([]byte, error) { return f(c, dst) }}
		}
	}
	lives := 0
	stop := make(chan struct{})
	var leaked sync.WaitGroup
	defer leaked.Wait()
	defer close(stop)
	faults := []struct {
		name  string
		found string // by the check of this name, if not by another before
		wrong wrongSource
		waits bool
	}{
		{name: "keys go down", found: "KeysGrow", wrong: wrongSource{wrap: next(func(c stream.Cursor, ctx context.Context) ([]byte, error) {
			key, err := c.Next(ctx)
			if err == nil {
				key = bytes.Clone(key)
				key[len(key)-1] ^= 0xff
			}
			return key, err
		})}},
		{name: "a position is taken to be before its record", found: "ReopenAfterEachKey", wrong: wrongSource{wrap: func(q stream.Query, c stream.Cursor) stream.Cursor {
			if len(q.After) == 0 {
				return c
			}
			again := true
			return wrongCursor{Cursor: c, next: func(ctx context.Context) ([]byte, error) {
				if again {
					again = false
					return q.After, nil
				}
				return c.Next(ctx)
			}, value: func(dst []byte) ([]byte, error) { return dst, nil }}
		}}},
		{name: "a record is lost at each position", found: "ReopenAfterEachKey", wrong: wrongSource{wrap: func(q stream.Query, c stream.Cursor) stream.Cursor {
			if len(q.After) > 0 {
				c.Next(context.Background())
			}
			return c
		}}},
		{name: "values differ", found: "SameTwice", wrong: wrongSource{wrap: value(func(c stream.Cursor, dst []byte) ([]byte, error) {
			lives++
			return fmt.Appendf(dst, "%d", lives), nil
		})}},
		{name: "the end is not final", found: "EndIsFinal", wrong: wrongSource{wrap: func() func(stream.Query, stream.Cursor) stream.Cursor {
			return func(_ stream.Query, c stream.Cursor) stream.Cursor {
				ended := false
				return wrongCursor{Cursor: c, next: func(ctx context.Context) ([]byte, error) {
					key, err := c.Next(ctx)
					if errors.Is(err, io.EOF) && ended {
						return []byte("zombie"), nil
					}
					ended = ended || errors.Is(err, io.EOF)
					return key, err
				}}
			}
		}()}},
		{name: "dst is overwritten", found: "ValueAppends", wrong: wrongSource{wrap: value(func(c stream.Cursor, dst []byte) ([]byte, error) {
			return c.Value(dst[:0])
		})}},
		{name: "memory of its own is returned", found: "KeyStaysUntilNext", wrong: wrongSource{wrap: func() func(stream.Query, stream.Cursor) stream.Cursor {
			return func(_ stream.Query, c stream.Cursor) stream.Cursor {
				var mine []byte
				return wrongCursor{Cursor: c, value: func(dst []byte) (_ []byte, err error) {
					if len(dst) > 0 {
						return c.Value(dst)
					}
					mine, err = c.Value(mine[:0])
					return mine, err
				}}
			}
		}()}},
		{name: "the key is used again by Value", found: "KeyStaysUntilNext", wrong: wrongSource{wrap: func(_ stream.Query, c stream.Cursor) stream.Cursor {
			var key []byte
			return wrongCursor{Cursor: c, next: func(ctx context.Context) (_ []byte, err error) {
				k, err := c.Next(ctx)
				key = bytes.Clone(k)
				if err != nil {
					return nil, err
				}
				return key, nil
			}, value: func(dst []byte) ([]byte, error) {
				v, err := c.Value(dst)
				clear(key)
				return v, err
			}}
		}}},
		{name: "only values that are read move it on", found: "ValueNeedNotBeRead", wrong: wrongSource{wrap: func(_ stream.Query, c stream.Cursor) stream.Cursor {
			read := true
			var key []byte
			return wrongCursor{Cursor: c, next: func(ctx context.Context) ([]byte, error) {
				if !read {
					return key, nil
				}
				k, err := c.Next(ctx)
				key, read = bytes.Clone(k), err != nil
				return k, err
			}, value: func(dst []byte) ([]byte, error) {
				read = true
				return c.Value(dst)
			}}
		}}},
		{name: "a cancelled context looks like the end", found: "CancelledContextIsNoEnd", wrong: wrongSource{wrap: next(func(c stream.Cursor, ctx context.Context) ([]byte, error) {
			if ctx.Err() != nil {
				return nil, io.EOF
			}
			return c.Next(ctx)
		})}},
		{name: "the tail ends", found: "CancelWhileWaiting", waits: true, wrong: wrongSource{}},
		{name: "Close fails", found: "KeysGrow", wrong: wrongSource{wrap: func(_ stream.Query, c stream.Cursor) stream.Cursor {
			return wrongCursor{Cursor: c, close: func() error { return errors.New("already closed") }}
		}}},
		{name: "each look is another generation", found: "StableNames", wrong: wrongSource{generation: func() string { lives++; return fmt.Sprint(lives) }}},
		{name: "a goroutine per cursor stays", found: "NothingLeaks", wrong: wrongSource{wrap: func(_ stream.Query, c stream.Cursor) stream.Cursor {
			leaked.Go(func() { <-stop })
			return c
		}}},
	}
	for _, fault := range faults {
		t.Run(fault.name, func(t *testing.T) {
			fault.wrong.Source = stream.Slice(tenRecords()...)
			s := SourceUnderTest{Source: fault.wrong, Count: 10, Waits: fault.waits}
			for _, check := range sourceChecks {
				err := check.run(s)
				if err == nil {
					continue
				}
				if check.name != fault.found {
					t.Fatalf("found by %s (%v), expected by %s", check.name, err, fault.found)
				}
				t.Logf("%s: %v", check.name, err)
				return
			}
			t.Fatal("not found")
		})
	}
}

func TestReadInPiecesFindsLoss(t *testing.T) {
	good := SourceUnderTest{Source: stream.Slice(tenRecords()...), Count: 10}
	all, err := readSource(good, nil, 10)
	if err != nil {
		t.Fatal(err)
	}
	if err := readInPieces(good, all, []int{1, 0, 3}); err != nil {
		t.Fatal(err)
	}
	bad := good
	bad.Source = wrongSource{Source: good.Source, wrap: func(q stream.Query, c stream.Cursor) stream.Cursor {
		if bytes.Equal(q.After, all[3].key) {
			c.Next(context.Background())
		}
		return c
	}}
	if err := readInPieces(bad, all, []int{1, 0, 3}); err == nil {
		t.Fatal("the loss of one record was not found")
	}
}

func TestSlice(t *testing.T) {
	RunSource(t, func(*testing.T) SourceUnderTest {
		records := tenRecords()
		records[4] = stream.Record{Key: records[4].Key, Bad: "cannot be made"}
		return SourceUnderTest{Source: stream.Slice(records...), Count: len(records)}
	})
}

func ExampleRunSource() {
	_ = func(t *testing.T) { // a test of a source of your own
		RunSource(t, func(t *testing.T) SourceUnderTest {
			path := filepath.Join(t.TempDir(), "lines")
			if err := os.WriteFile(path, []byte("one\ntwo\nthree\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			return SourceUnderTest{Source: stream.File(path, stream.FileOptions{}), Count: 3}
		})
	}
}
