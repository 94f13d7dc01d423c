//go:build unix

package stream_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/streamtest"
)

func writeFile(t *testing.T, path, content string) string {
	t.Helper()
	if path == "" {
		path = filepath.Join(t.TempDir(), "records")
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func appendFile(t *testing.T, path, content string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
}

// keyed is a record as a cursor gave it.
type keyed struct {
	key   []byte
	value string
	err   error
}

// readAll reads until an error, and returns that too.
func readAll(ctx context.Context, s stream.Source, after []byte) (all []keyed, err error) {
	c, err := s.Open(ctx, stream.Query{After: after})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for {
		key, err := c.Next(ctx)
		if err != nil {
			return all, err
		}
		value, err := c.Value(nil)
		all = append(all, keyed{bytes.Clone(key), string(value), err})
	}
}

func values(all []keyed) string {
	var texts []string
	for _, r := range all {
		if r.err != nil {
			r.value = "BAD"
		}
		texts = append(texts, r.value)
	}
	return strings.Join(texts, "|")
}

func prefixed(records ...string) string {
	var b []byte
	for _, r := range records {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(r))), r...)
	}
	return string(b)
}

func TestFileKeepsTheContract(t *testing.T) {
	long := strings.Repeat("long ", 60_000) // larger than the buffer
	var many strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&many, `{"id": %d, "text": "%s"}`+"\n", i, strings.Repeat("x", i%100))
	}
	tests := []struct {
		name, content string
		count         int
		options       stream.FileOptions
	}{
		{"lines", "one\n\nthree\r\nfour\n", 4, stream.FileOptions{}},
		{"last line without newline", "one\ntwo\nthree", 3, stream.FileOptions{}},
		{"long lines", long + "1\nshort\n" + long + "2\n" + long, 4, stream.FileOptions{}},
		{"too long lines", "a\n" + long + "\nb\n" + long, 4, stream.FileOptions{MaxRecord: 1000}},
		{"too long lines first", long + "\nb\nc\n", 3, stream.FileOptions{MaxRecord: 10}},
		{"many lines", many.String(), 3000, stream.FileOptions{}},
		{"fixed", strings.Repeat("abcdefgh", 1000), 1000, stream.FileOptions{Format: stream.FileFixed, RecordSize: 8}},
		{"prefixed", prefixed("one", "", long, "four\n"), 4, stream.FileOptions{Format: stream.FilePrefixed}},
		{"followed lines", "one\ntwo\nthree\nnot yet a li", 3, stream.FileOptions{Follow: true, Poll: time.Millisecond}},
		{"followed prefixed", prefixed("one", "two", "three") + "\x00", 3, stream.FileOptions{Format: stream.FilePrefixed, Follow: true}},
		{"followed long line", "one\ntwo\nthree\n" + long, 3, stream.FileOptions{Follow: true, MaxRecord: 1000}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := writeFile(t, "", test.content)
			streamtest.RunSource(t, func(t *testing.T) streamtest.SourceUnderTest {
				return streamtest.SourceUnderTest{Source: stream.File(path, test.options), Count: test.count, Waits: test.options.Follow}
			})
		})
	}
}

func TestFileLines(t *testing.T) {
	tests := []struct{ content, want string }{
		{"", ""},
		{"\n", ""},
		{"\n\n", "|"},
		{"a", "a"},
		{"a\nb", "a|b"},
		{"a\r\nb\n", "a\r|b"},
		{"0123456789\nx\n", "0123456789|x"},
		{"0123456789A\nx\n", "BAD|x"},
		{"x\n0123456789A", "x|BAD"},
	}
	for _, test := range tests {
		path := writeFile(t, "", test.content)
		all, err := readAll(t.Context(), stream.File(path, stream.FileOptions{MaxRecord: 10}), nil)
		if err != io.EOF || values(all) != test.want {
			t.Errorf("%q was read as %q (%v), expected %q", test.content, values(all), err, test.want)
		}
	}
}

// Whatever the lines are, they come out as they went in, from each position.
func TestFileProperty(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lines")
	rapid.Check(t, func(r *rapid.T) {
		lengths := rapid.SliceOfN(rapid.OneOf(rapid.IntRange(0, 20), rapid.IntRange(60, 70), rapid.IntRange(4000, 4200), rapid.IntRange(65_000, 66_000)), 1, 12).Draw(r, "lengths")
		newlineAtEnd := rapid.Bool().Draw(r, "newline at end")
		limit := rapid.SampledFrom([]int{10, 100, 70_000}).Draw(r, "limit")
		var lines, want []string
		for i, n := range lengths {
			line := strings.Repeat(string(rune('a'+i)), n)
			lines = append(lines, line)
			if n > limit {
				line = "BAD"
			}
			want = append(want, line)
		}
		content := strings.Join(lines, "\n")
		if newlineAtEnd || strings.HasSuffix(content, "\n") || content == "" { // an empty last line needs its newline
			content += "\n"
		}
		writeFile(t, path, content)
		source := stream.File(path, stream.FileOptions{MaxRecord: limit})
		all, err := readAll(t.Context(), source, nil)
		if err != io.EOF || values(all) != strings.Join(want, "|") {
			r.Fatalf("read %.100q (%v), expected %.100q", values(all), err, strings.Join(want, "|"))
		}
		at := rapid.IntRange(0, len(all)-1).Draw(r, "position")
		if binary.BigEndian.Uint64(all[len(all)-1].key) != uint64(len(content)) {
			r.Fatalf("the last key is %x, expected one that begins with the file's size, %x", all[len(all)-1].key, len(content))
		}
		rest, err := readAll(t.Context(), source, all[at].key)
		if err != io.EOF || values(rest) != values(all[at+1:]) || len(rest) != len(all)-at-1 {
			r.Fatalf("after record %d: read %.100q (%v), expected %.100q", at, values(rest), err, values(all[at+1:]))
		}
	})
}

func TestFileTooLarge(t *testing.T) {
	path := writeFile(t, "", "fine\ntoo long\nfine\n")
	all, _ := readAll(t.Context(), stream.File(path, stream.FileOptions{MaxRecord: 4}), nil)
	if err := all[1].err; !errors.Is(err, stream.ErrTooLarge) || !strings.Contains(err.Error(), "begins at byte 5 ") {
		t.Errorf("a line that is too long: %v", err)
	}
	writeFile(t, path, prefixed("fine", "too long"))
	all, err := readAll(t.Context(), stream.File(path, stream.FileOptions{MaxRecord: 4, Format: stream.FilePrefixed}), nil)
	if !errors.Is(err, stream.ErrTooLarge) || !strings.Contains(err.Error(), "at byte 8 is 8") || values(all) != "fine" {
		t.Errorf("a record that is too long: %v, after %q", err, values(all))
	}
}

// A file that ends in the middle of a record may still be being copied: that is no end.
func TestFileEndsInRecord(t *testing.T) {
	for format, content := range map[stream.FileFormat]string{stream.FileFixed: "abcdef", stream.FilePrefixed: prefixed("abcd") + "\x00\x00\x00\x04ab"} {
		o := stream.FileOptions{Format: format}
		if format == stream.FileFixed {
			o.RecordSize = 4
		}
		all, err := readAll(t.Context(), stream.File(writeFile(t, "", content), o), nil)
		if !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || values(all) != "abcd" {
			t.Errorf("%s: read %q, %v, expected an unexpected end after one record", format, values(all), err)
		}
	}
}

func TestFileThatWasReplaced(t *testing.T) {
	long := strings.Repeat("a header that both files have\n", 200) // longer than the head that is compared
	tests := []struct {
		name, before string
		after        string // new content of the same file
		read         int    // records read before
		want         error
	}{
		{"grew", "a\nb\n", "a\nb\nc\n", 2, nil},
		{"same", "a\nb\n", "a\nb\n", 1, nil},
		{"cut", "a\nb\nc\n", "a\nb\n", 3, stream.ErrGone},
		{"cut to nothing", "a\nb\nc\n", "", 1, stream.ErrGone},
		{"other beginning", "a\nb\nc\n", "x\ny\nz\nz\n", 2, stream.ErrGeneration},
		{"other line, same size", "a\nb\nc\n", "a\nx\nc\n", 2, stream.ErrGeneration},
		{"change after the position", "a\nb\nc\n", "a\nb\nx\n", 2, nil},
		{"same beginning, other lines", long + "one\n" + long, long + "two\n" + long, 201, stream.ErrGeneration},
		{"shifted", long + "one\n" + long, long + "seven\n" + long, 202, stream.ErrGeneration},
		{"last line grew", "a\nb", "a\nbcd\ne\n", 2, stream.ErrGeneration},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := writeFile(t, "", test.before)
			source := stream.File(path, stream.FileOptions{})
			all, _ := readAll(t.Context(), source, nil)
			writeFile(t, path, test.after)
			rest, err := readAll(t.Context(), source, all[test.read-1].key)
			if test.want == nil {
				if err != io.EOF {
					t.Fatal(err)
				}
				fresh, _ := readAll(t.Context(), source, nil)
				if values(rest) != values(fresh[test.read:]) {
					t.Fatalf("read %q, expected %q", values(rest), values(fresh[test.read:]))
				}
				return
			}
			if !errors.Is(err, test.want) {
				t.Fatalf("error %v, expected %v", err, test.want)
			}
			t.Log(err)
			if gone, ok := errors.AsType[*stream.PositionGoneError](err); ok {
				fresh, _ := readAll(t.Context(), source, nil)
				if len(fresh) > 0 != (gone.Oldest != nil) || len(fresh) > 0 && !bytes.Equal(gone.Oldest, fresh[0].key) {
					t.Errorf("the oldest record is said to be %x, of %d", gone.Oldest, len(fresh))
				}
			}
		})
	}
}

func TestFileGeneration(t *testing.T) {
	path := writeFile(t, "", "a\n")
	generation := func(s stream.Source) string {
		name, err := s.(stream.Generation).Generation(t.Context(), stream.Query{})
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	source := stream.File(path, stream.FileOptions{})
	first := generation(source)
	appendFile(t, path, "b\n")
	if now := generation(source); now != first {
		t.Errorf("the generation of a file that grew went from %q to %q", first, now)
	}
	other := writeFile(t, path+".new", "a\nb\n") // made while the first is there, so it has another number
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	if now := generation(source); now == first {
		t.Errorf("another file has the same generation: %q", now)
	}
	if now := generation(stream.File(path, stream.FileOptions{Identity: "export 7"})); now != "export 7" {
		t.Errorf("the generation is %q, expected the one that was given", now)
	}
	a, b := stream.File(path, stream.FileOptions{}).(stream.Schema), stream.File(path, stream.FileOptions{Format: stream.FileFixed, RecordSize: 1}).(stream.Schema)
	if a.Schema(stream.Query{}) == b.Schema(stream.Query{}) {
		t.Error("another format has the same schema")
	}
}

func TestFileRefuses(t *testing.T) {
	path := writeFile(t, "", "a\n")
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		path    string
		options stream.FileOptions
		after   []byte
		want    string
	}{
		{path, stream.FileOptions{Format: "csv"}, nil, `format "csv" is not known`},
		{path, stream.FileOptions{Format: stream.FileFixed}, nil, "RecordSize is 0"},
		{path, stream.FileOptions{RecordSize: 3}, nil, "RecordSize is only for"},
		{path, stream.FileOptions{MaxRecord: -1}, nil, "must not be negative"},
		{path, stream.FileOptions{}, []byte("short"), "this one 5"},
		{path, stream.FileOptions{}, make([]byte, 12), "no record of file"},
		{path, stream.FileOptions{}, bytes.Repeat([]byte{0xff}, 12), "no record of file"},
		{pipe, stream.FileOptions{}, nil, "not a regular file"},
		{t.TempDir(), stream.FileOptions{}, nil, "not a regular file"},
		{path + ".missing", stream.FileOptions{}, nil, "no such file"},
	}
	for _, test := range tests {
		_, err := stream.File(test.path, test.options).Open(t.Context(), stream.Query{After: test.after})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: error %v, expected one with %q", test.options, err, test.want)
		}
	}
}

// A followed file is waited for in virtual time: files do not keep a bubble from going on.
func TestFileFollow(t *testing.T) {
	long := strings.Repeat("x", 200_000)
	tests := []struct {
		name   string
		grow   func(t *testing.T, path string)
		want   string // what comes after "first"
		wanted error  // or how it ends
	}{
		{name: "a line", grow: func(t *testing.T, path string) { appendFile(t, path, "second\n") }, want: "second"},
		{name: "a line in two parts", grow: func(t *testing.T, path string) {
			appendFile(t, path, "sec")
			time.Sleep(time.Minute)
			appendFile(t, path, "ond\n")
		}, want: "second"},
		{name: "a long line in two parts", grow: func(t *testing.T, path string) {
			appendFile(t, path, long)
			time.Sleep(time.Minute)
			appendFile(t, path, long+"\n")
		}, want: "BAD"},
		{name: "rotated with lines not yet read", grow: func(t *testing.T, path string) {
			appendFile(t, path, "second\n")
			if err := os.Rename(path, path+".1"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute) // no file there: it is waited for
			writeFile(t, path, "other\n")
		}, want: "second", wanted: stream.ErrGeneration},
		{name: "cut", grow: func(t *testing.T, path string) { writeFile(t, path, "") }, wanted: stream.ErrGone},
		{name: "overwritten and grown", grow: func(t *testing.T, path string) { writeFile(t, path, "other\nlines that are longer\n") }, wanted: stream.ErrGeneration},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := writeFile(t, "", "first\n")
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				c, err := stream.File(path, stream.FileOptions{Follow: true, MaxRecord: 100_000}).Open(ctx, stream.Query{})
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				var all []keyed
				var last error
				done := make(chan struct{})
				go func() {
					defer close(done)
					for {
						key, err := c.Next(ctx)
						if err != nil {
							last = err
							return
						}
						value, err := c.Value(nil)
						all = append(all, keyed{bytes.Clone(key), string(value), err})
					}
				}()
				time.Sleep(time.Hour)
				synctest.Wait()
				if values(all) != "first" || last != nil {
					t.Fatalf("read %q, %v before the file grew", values(all), last)
				}
				test.grow(t, path)
				time.Sleep(time.Hour)
				synctest.Wait()
				if got := strings.TrimPrefix(values(all), "first|"); test.want != "" && got != test.want {
					t.Errorf("read %.100q, expected %q", got, test.want)
				}
				if test.wanted != nil && !errors.Is(last, test.wanted) {
					t.Errorf("ended with %v, expected %v", last, test.wanted)
				}
				if test.wanted == nil {
					cancel()
				}
				<-done
				if test.wanted == nil && !errors.Is(last, context.Canceled) {
					t.Errorf("ended with %v, expected the context's error", last)
				}
			})
		})
	}
}

func ExampleFile() {
	path := filepath.Join(os.TempDir(), "levada-example.jsonl")
	defer os.Remove(path)
	if err := os.WriteFile(path, []byte("{\"id\":1}\n{\"id\":2}\n"), 0o600); err != nil {
		panic(err)
	}
	source := stream.File(path, stream.FileOptions{}) // for server.Handle
	cursor, err := source.Open(context.Background(), stream.Query{})
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
		fmt.Printf("ends at byte %d: %s\n", binary.BigEndian.Uint64(key), value)
	}
	// Output:
	// ends at byte 9: {"id":1}
	// ends at byte 18: {"id":2}
}
