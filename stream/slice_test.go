package stream_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"testing"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/streamtest"
)

func numbered(n int) []stream.Record {
	var all []stream.Record
	for i := range n {
		all = append(all, stream.Record{Key: binary.BigEndian.AppendUint32(nil, uint32(i)), Value: fmt.Appendf(nil, "value %d", i)})
	}
	return all
}

func TestSliceKeepsTheContract(t *testing.T) {
	streamtest.RunSource(t, func(*testing.T) streamtest.SourceUnderTest {
		return streamtest.SourceUnderTest{Source: stream.Slice(numbered(50)...), Count: 50}
	})
}

// An item that panics costs itself only, wherever the source is opened.
func TestSliceOfKeepsTheContract(t *testing.T) {
	streamtest.RunSource(t, func(*testing.T) streamtest.SourceUnderTest {
		items := []string{"a", "bb", "ccc", "poison", "z"}
		source := stream.SliceOf(items, func(s string) []byte { return []byte(s) }, func(dst []byte, s string) ([]byte, error) {
			if s == "poison" {
				panic("this item cannot be made")
			}
			return append(dst, strings.ToUpper(s)...), nil
		})
		return streamtest.SourceUnderTest{Source: source, Count: len(items)}
	})
}

func TestSliceFindsPlaceOfUnknownKey(t *testing.T) {
	source := stream.Slice(stream.Record{Key: []byte("b")}, stream.Record{Key: []byte("d")})
	for after, want := range map[string]string{"": "b", "a": "b", "b": "d", "c": "d", "d": "end", "e": "end"} {
		c, err := source.Open(t.Context(), stream.Query{After: []byte(after)})
		if err != nil {
			t.Fatal(err)
		}
		key, err := c.Next(t.Context())
		if errors.Is(err, io.EOF) {
			key = []byte("end")
		}
		if string(key) != want {
			t.Errorf("after %q comes %q, expected %q", after, key, want)
		}
	}
}

func TestSliceRefusesWrongOrder(t *testing.T) {
	tests := []struct {
		keys, want string
	}{
		{"a c b", `item 2 has key "b", and item 1 before it has "c"`},
		{"a b b", `item 2 has key "b", and item 1 before it has "b"`},
		{"user9 user10", `item 1 has key "user10", and item 0 before it has "user9"`},
		{" a", "item 0 has an empty key"},
	}
	for _, test := range tests {
		var records []stream.Record
		for _, key := range strings.Split(test.keys, " ") {
			records = append(records, stream.Record{Key: []byte(key)})
		}
		_, err := stream.Slice(records...).Open(t.Context(), stream.Query{})
		if !errors.Is(err, stream.ErrOrder) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("keys %q: error %v, expected an ErrOrder with %s", test.keys, err, test.want)
		}
	}
}

// ofIterator makes a Source of records by way of an iterator. With wait, it does not end but waits for its context.
func ofIterator(records []stream.Record, wait bool) stream.Source {
	return stream.Func(func(ctx context.Context, q stream.Query) iter.Seq2[stream.Record, error] {
		return func(yield func(stream.Record, error) bool) {
			for _, r := range records {
				if string(r.Key) > string(q.After) && !yield(r, nil) {
					return
				}
			}
			if wait {
				<-ctx.Done() // and then it ends silently, as many iterators do
			}
		}
	})
}

func TestFuncKeepsTheContract(t *testing.T) {
	for _, waits := range []bool{false, true} {
		t.Run(fmt.Sprintf("waits=%t", waits), func(t *testing.T) {
			streamtest.RunSource(t, func(*testing.T) streamtest.SourceUnderTest {
				records := numbered(30)[1:]
				records[7].Value, records[7].Bad = nil, "bad from the start"
				return streamtest.SourceUnderTest{Source: ofIterator(records, waits), Count: len(records), Waits: waits}
			})
		})
	}
}

func TestFuncErrors(t *testing.T) {
	bad, broken := errors.New("one record is bad"), errors.New("the rest cannot be read")
	source := stream.Func(func(context.Context, stream.Query) iter.Seq2[stream.Record, error] {
		return func(yield func(stream.Record, error) bool) {
			_ = yield(stream.Record{Key: []byte("a"), Value: []byte("fine")}, nil) &&
				yield(stream.Record{Key: []byte("b")}, stream.Skip(bad)) &&
				yield(stream.Record{Key: []byte("c")}, nil) &&
				yield(stream.Record{}, broken) &&
				yield(stream.Record{Key: []byte("d")}, nil)
		}
	})
	c, err := source.Open(t.Context(), stream.Query{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, want := range []string{"a", "b", "c"} {
		key, err := c.Next(t.Context())
		if err != nil || string(key) != want {
			t.Fatalf("Next returned %q, %v, expected key %q", key, err, want)
		}
		if _, err := c.Value(nil); errors.Is(err, bad) != (want == "b") {
			t.Errorf("Value of %q: %v", want, err)
		}
	}
	for range 2 {
		if _, err := c.Next(t.Context()); !errors.Is(err, broken) {
			t.Fatalf("Next returned %v, expected %v", err, broken)
		}
	}
}

func ExampleSliceOf() {
	type user struct {
		ID   uint64
		Name string
	}
	users := []user{{3, "Ada"}, {17, "Grace"}} // sorted by ID
	source := stream.SliceOf(users,
		func(u user) []byte { return binary.BigEndian.AppendUint64(nil, u.ID) },
		func(dst []byte, u user) ([]byte, error) { return append(dst, u.Name...), nil })

	cursor, err := source.Open(context.Background(), stream.Query{After: binary.BigEndian.AppendUint64(nil, 3)})
	if err != nil {
		panic(err)
	}
	defer cursor.Close()
	for {
		key, err := cursor.Next(context.Background())
		if err == io.EOF {
			break
		}
		value, _ := cursor.Value(nil)
		fmt.Printf("%x %s\n", key, value)
	}
	// Output: 0000000000000011 Grace
}
