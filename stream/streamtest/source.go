package streamtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/levada-io/levada/stream"
)

// SourceUnderTest is a source, and what it holds.
type SourceUnderTest struct {
	Source stream.Source
	// Query says what to read; its After is not looked at. Records are the same for it as long as the test runs.
	Query stream.Query
	// Count is how many records there are. At least 3, so that there is something to go on from.
	Count int
	// Waits says that Next waits for more after the last record, as in a live tail. Else it returns io.EOF.
	Waits bool
}

// RunSource checks that a source keeps the contract of [stream.Source] and [stream.Cursor], on which it depends that a stream that
// was cut goes on without loss. open is called once for each subtest, and cleans up with t.Cleanup; its source may be one
// that the subtests share. Each of them must hold the same number of records.
func RunSource(t *testing.T, open func(t *testing.T) SourceUnderTest) {
	t.Helper()
	for _, check := range sourceChecks {
		t.Run(check.name, func(t *testing.T) {
			s := open(t)
			if s.Count < 3 {
				t.Fatalf("SourceUnderTest.Count is %d: a source that is tested has at least 3 records", s.Count)
			}
			if err := check.run(s); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Run("RandomReopens", func(t *testing.T) {
		s := open(t)
		all, err := readSource(s, nil, s.Count)
		if err != nil {
			t.Fatal(err)
		}
		rapid.Check(t, func(t *rapid.T) {
			steps := rapid.SliceOfN(rapid.IntRange(0, len(all)), 1, 8).Draw(t, "records read by each opening")
			if err := readInPieces(s, all, steps); err != nil {
				t.Fatal(err)
			}
		})
	})
}

// sourceChecks are functions of the source, not of a test, so that the suite can be tested on bad sources.
var sourceChecks = []struct {
	name string
	run  func(SourceUnderTest) error
}{
	{"KeysGrow", checkKeysGrow},
	{"SameTwice", checkSameTwice},
	{"ReopenAfterEachKey", checkReopenAfterEach},
	{"Bookmarks", checkBookmarks},
	{"EndIsFinal", checkEndIsFinal},
	{"ValueAppends", checkValueAppends},
	{"KeyStaysUntilNext", checkKeyStays},
	{"ValueNeedNotBeRead", checkValueUnread},
	{"CancelledContextIsNoEnd", checkCancelledIsNoEnd},
	{"CancelWhileWaiting", checkCancelWhileWaiting},
	{"CloseAnywhere", checkCloseAnywhere},
	{"Concurrent", checkConcurrent},
	{"StableNames", checkStableNames},
	{"NothingLeaks", checkNoLeak},
}

// sourcePatience is how long a source may take for anything that should be prompt, on a busy machine.
const sourcePatience = 10 * time.Second

// sourceRecord is what a source gave for one record.
type sourceRecord struct {
	key, value []byte
	bad        string // its Value returned an error, or panicked
}

func (r sourceRecord) equal(o sourceRecord) bool {
	return bytes.Equal(r.key, o.key) && bytes.Equal(r.value, o.value) && r.bad == o.bad
}

func openSource(ctx context.Context, s SourceUnderTest, after []byte) (stream.Cursor, error) {
	q := s.Query
	q.After = slices.Clone(after)
	c, err := s.Source.Open(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("Open after key %q: %w", after, err)
	}
	if c == nil {
		return nil, fmt.Errorf("Open after key %q returned neither a cursor nor an error", after)
	}
	return c, nil
}

// nextKey passes over calls that only moved the bookmark.
func nextKey(ctx context.Context, c stream.Cursor) ([]byte, error) {
	_, hasBookmark := c.(stream.ProgressKeyer)
	for {
		key, err := c.Next(ctx)
		if err != nil || key != nil || !hasBookmark {
			return key, err
		}
	}
}

// valueOf turns what a record costs, an error or a panic, into text that can be compared.
func valueOf(c stream.Cursor, dst []byte) (value []byte, bad string) {
	defer func() {
		if p := recover(); p != nil {
			value, bad = nil, fmt.Sprint("panic: ", p)
		}
	}()
	value, err := c.Value(dst)
	if err != nil {
		return nil, err.Error()
	}
	return value, ""
}

// readCursor reads n records, or to the end if n is negative.
func readCursor(ctx context.Context, c stream.Cursor, n int) ([]sourceRecord, error) {
	var all []sourceRecord
	for n < 0 || len(all) < n {
		key, err := nextKey(ctx, c)
		if err != nil {
			if errors.Is(err, io.EOF) && n < 0 {
				return all, nil
			}
			return all, fmt.Errorf("Next after %d records: %w", len(all), err)
		}
		r := sourceRecord{key: bytes.Clone(key)}
		value, bad := valueOf(c, nil)
		r.value, r.bad = bytes.Clone(value), bad
		all = append(all, r)
	}
	return all, nil
}

// readSource opens the source and reads n records, and the end too unless the source waits there.
func readSource(s SourceUnderTest, after []byte, n int) (all []sourceRecord, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 6*sourcePatience)
	defer cancel()
	c, err := openSource(ctx, s, after)
	if err != nil {
		return nil, err
	}
	defer func() {
		if e := c.Close(); e != nil && err == nil {
			err = fmt.Errorf("Close: %w", e)
		}
	}()
	if s.Waits {
		all, err = readCursor(ctx, c, n)
	} else {
		all, err = readCursor(ctx, c, -1)
	}
	if err != nil {
		return nil, fmt.Errorf("opened after key %q, expecting %d records: %w", after, n, err)
	}
	if len(all) != n {
		return nil, fmt.Errorf("opened after key %q: there were %d records, expected %d", after, len(all), n)
	}
	return all, nil
}

func compareRecords(got, want []sourceRecord) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d records, expected %d", len(got), len(want))
	}
	for i := range got {
		if !got[i].equal(want[i]) {
			return fmt.Errorf("record %d of %d is key %q, value %.60q, error %q; expected key %q, value %.60q, error %q",
				i+1, len(got), got[i].key, got[i].value, got[i].bad, want[i].key, want[i].value, want[i].bad)
		}
	}
	return nil
}

func checkKeysGrow(s SourceUnderTest) error {
	all, err := readSource(s, nil, s.Count)
	if err != nil {
		return err
	}
	last := []byte{} // no key may be empty: it would be the position before the first record
	for i, r := range all {
		if bytes.Compare(r.key, last) <= 0 {
			return fmt.Errorf("%w: record %d has key %q, after key %q", stream.ErrOrder, i+1, r.key, last)
		}
		last = r.key
	}
	return nil
}

func checkSameTwice(s SourceUnderTest) error {
	first, err := readSource(s, nil, s.Count)
	if err != nil {
		return err
	}
	second, err := readSource(s, nil, s.Count)
	if err != nil {
		return err
	}
	if err := compareRecords(second, first); err != nil {
		return fmt.Errorf("read a second time: %w", err)
	}
	return nil
}

func checkReopenAfterEach(s SourceUnderTest) error {
	all, err := readSource(s, nil, s.Count)
	if err != nil {
		return err
	}
	step := max(1, len(all)/100) // long sources at a hundred places, and always at both ends
	for i := 0; i < len(all); i++ {
		if i%step != 0 && i < len(all)-2 {
			continue
		}
		rest, err := readSource(s, all[i].key, len(all)-i-1)
		if err != nil {
			return err
		}
		if err := compareRecords(rest, all[i+1:]); err != nil {
			return fmt.Errorf("opened after record %d (key %q): %w", i+1, all[i].key, err)
		}
	}
	return nil
}

// readInPieces opens the source again and again, each time after the last key, and reads steps[i] records of each opening, then the rest.
func readInPieces(s SourceUnderTest, want []sourceRecord, steps []int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 6*sourcePatience)
	defer cancel()
	var got []sourceRecord
	var after []byte
	for _, n := range steps {
		n = min(n, len(want)-len(got))
		c, err := openSource(ctx, s, after)
		if err != nil {
			return err
		}
		piece, err := readCursor(ctx, c, n)
		if e := c.Close(); err == nil && e != nil {
			err = fmt.Errorf("Close: %w", e)
		}
		if err != nil {
			return fmt.Errorf("opened after key %q: %w", after, err)
		}
		got = append(got, piece...)
		if len(got) > 0 {
			after = got[len(got)-1].key
		}
	}
	rest, err := readSource(s, after, len(want)-len(got))
	if err != nil {
		return err
	}
	if err := compareRecords(append(got, rest...), want); err != nil {
		return fmt.Errorf("read in pieces of %v: %w", steps, err)
	}
	return nil
}

func checkBookmarks(s SourceUnderTest) error {
	all, err := readSource(s, nil, s.Count)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 6*sourcePatience)
	defer cancel()
	c, err := openSource(ctx, s, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	b, ok := c.(stream.ProgressKeyer)
	if !ok {
		return nil
	}
	for i, r := range all {
		if _, err := nextKey(ctx, c); err != nil {
			return fmt.Errorf("Next after %d records: %w", i, err)
		}
		at := bytes.Clone(b.ProgressKey())
		if bytes.Compare(at, r.key) < 0 {
			if len(at) == 0 {
				continue // knows nothing yet
			}
			return fmt.Errorf("the bookmark after record %d is %q, before the record's own key %q", i+1, at, r.key)
		}
		if i+1 < len(all) && bytes.Compare(at, all[i+1].key) >= 0 {
			return fmt.Errorf("the bookmark after record %d is %q, and record %d with key %q is still to come", i+1, at, i+2, all[i+1].key)
		}
		if i%max(1, len(all)/20) != 0 {
			continue
		}
		rest, err := readSource(s, at, len(all)-i-1)
		if err != nil {
			return err
		}
		if err := compareRecords(rest, all[i+1:]); err != nil {
			return fmt.Errorf("opened after the bookmark %q, given after record %d: %w", at, i+1, err)
		}
	}
	return nil
}

func checkEndIsFinal(s SourceUnderTest) error {
	if s.Waits {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 6*sourcePatience)
	defer cancel()
	c, err := openSource(ctx, s, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := readCursor(ctx, c, -1); err != nil {
		return err
	}
	for range 3 {
		if key, err := nextKey(ctx, c); !errors.Is(err, io.EOF) {
			return fmt.Errorf("Next after the end returned key %q and error %v, expected io.EOF again", key, err)
		}
	}
	return nil
}

func checkValueAppends(s SourceUnderTest) error {
	all, err := readSource(s, nil, s.Count)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 6*sourcePatience)
	defer cancel()
	c, err := openSource(ctx, s, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	prefix := []byte("what the caller has already")
	for i, want := range all {
		if _, err := nextKey(ctx, c); err != nil {
			return fmt.Errorf("Next after %d records: %w", i, err)
		}
		room := 0
		if i%2 == 0 {
			room = len(want.value) + 16
		}
		dst := append(make([]byte, 0, len(prefix)+room), prefix...)
		value, bad := valueOf(c, dst)
		if !bytes.Equal(dst, prefix) {
			return fmt.Errorf("Value of record %d overwrote what was in dst", i+1)
		}
		if bad != want.bad {
			return fmt.Errorf("Value of record %d failed with %q, expected %q", i+1, bad, want.bad)
		}
		if rest, ok := bytes.CutPrefix(value, prefix); bad == "" && (!ok || !bytes.Equal(rest, want.value)) {
			return fmt.Errorf("Value of record %d returned %.80q, expected what was in dst and then %.60q", i+1, value, want.value)
		}
	}
	return nil
}

// checkKeyStays also checks that values survive the next call: they were appended to memory of the caller's.
func checkKeyStays(s SourceUnderTest) error {
	all, err := readSource(s, nil, s.Count)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 6*sourcePatience)
	defer cancel()
	c, err := openSource(ctx, s, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	var last, lastCopy []byte
	for i := range s.Count {
		key, err := nextKey(ctx, c)
		if err != nil {
			return fmt.Errorf("Next after %d records: %w", i, err)
		}
		before := bytes.Clone(key)
		value, _ := valueOf(c, make([]byte, 0, 64))
		if !bytes.Equal(last, lastCopy) {
			return fmt.Errorf("the value of record %d, which was appended to memory of the caller's, was overwritten by the calls for the next", i)
		}
		if !bytes.Equal(key, before) {
			return fmt.Errorf("Value of record %d changed its key from %q to %q", i+1, before, key)
		}
		last, lastCopy = value, bytes.Clone(value)
		// The caller owns what was appended, and may write over it; what the cursor gives next must not depend on it.
		if i%3 == 2 {
			clear(value)
			last, lastCopy = nil, nil
		}
	}
	again, err := readSource(s, nil, s.Count)
	if err != nil {
		return err
	}
	if err := compareRecords(again, all); err != nil {
		return fmt.Errorf("after the caller had written over values that were appended to its memory: %w", err)
	}
	return nil
}

func checkValueUnread(s SourceUnderTest) error {
	all, err := readSource(s, nil, s.Count)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 6*sourcePatience)
	defer cancel()
	c, err := openSource(ctx, s, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	for i, want := range all {
		key, err := nextKey(ctx, c)
		if err != nil {
			return fmt.Errorf("Next after %d records: %w", i, err)
		}
		got := sourceRecord{key: bytes.Clone(key), value: want.value, bad: want.bad}
		if i%2 == 0 {
			value, bad := valueOf(c, nil)
			got.value, got.bad = value, bad
		}
		if err := compareRecords([]sourceRecord{got}, all[i:i+1]); err != nil {
			return fmt.Errorf("reading the value of every other record only: %w", err)
		}
	}
	return nil
}

// within calls f and waits for it for as long as a prompt answer may take.
func within(what string, f func()) error {
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	timer := time.NewTimer(sourcePatience)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
		return fmt.Errorf("%s did not return within %v", what, sourcePatience)
	}
}

func checkCancelledIsNoEnd(s SourceUnderTest) error {
	ctx, cancel := context.WithTimeout(context.Background(), 6*sourcePatience)
	defer cancel()
	c, err := openSource(ctx, s, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := readCursor(ctx, c, 1); err != nil {
		return err
	}
	over, cancelNow := context.WithCancel(ctx)
	cancelNow()
	var n int
	var last error
	err = within("Next with a cancelled context", func() {
		for n, last = 1, nil; last == nil && n <= s.Count; n++ { // some sources go on with what they have in memory
			_, last = nextKey(over, c)
		}
	})
	if err == nil && errors.Is(last, io.EOF) && n <= s.Count {
		return fmt.Errorf("Next with a cancelled context returned io.EOF before the last of %d records: the stream would be taken for complete", s.Count)
	}
	if err != nil {
		return err
	}
	return within("Open with a cancelled context", func() {
		if c, err := openSource(over, s, nil); err == nil {
			c.Close()
		}
	})
}

func checkCancelWhileWaiting(s SourceUnderTest) error {
	if !s.Waits {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 6*sourcePatience)
	defer cancel()
	c, err := openSource(ctx, s, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := readCursor(ctx, c, s.Count); err != nil {
		return err
	}
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	timer := time.AfterFunc(100*time.Millisecond, stop) // Next should be waiting by then; it must return either way
	defer timer.Stop()
	var key []byte
	var last error
	err = within("Next, whose context was cancelled while it waited,", func() { key, last = nextKey(waiting, c) })
	switch {
	case err != nil:
		return err
	case last == nil:
		return fmt.Errorf("there was a record with key %q beyond the %d that SourceUnderTest.Count names", key, s.Count)
	case errors.Is(last, io.EOF):
		return fmt.Errorf("Next returned io.EOF although the source waits for more: %w", last)
	case waiting.Err() == nil:
		return fmt.Errorf("Next returned before its context was cancelled: %w", last)
	}
	return nil
}

func checkCloseAnywhere(s SourceUnderTest) error {
	ctx, cancel := context.WithTimeout(context.Background(), 6*sourcePatience)
	defer cancel()
	for n := range min(s.Count, 20) {
		c, err := openSource(ctx, s, nil)
		if err != nil {
			return err
		}
		if _, err := readCursor(ctx, c, n); err != nil {
			c.Close()
			return err
		}
		if err := c.Close(); err != nil {
			return fmt.Errorf("Close after %d records: %w", n, err)
		}
	}
	return nil
}

func checkConcurrent(s SourceUnderTest) error {
	all, err := readSource(s, nil, s.Count)
	if err != nil {
		return err
	}
	const readers = 4
	errs := make([]error, readers)
	var wg sync.WaitGroup
	for i := range readers {
		wg.Go(func() {
			if i%2 == 0 {
				errs[i] = readInPieces(s, all, []int{i, 1, len(all) / 2})
				return
			}
			got, err := readSource(s, nil, s.Count)
			if err == nil {
				err = compareRecords(got, all)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%d readers at once: %w", readers, err)
	}
	return nil
}

func checkStableNames(s SourceUnderTest) error {
	ctx, cancel := context.WithTimeout(context.Background(), sourcePatience)
	defer cancel()
	var names [2]string
	for i := range names {
		if i > 0 { // reading changes nothing
			if _, err := readSource(s, nil, s.Count); err != nil {
				return err
			}
		}
		if g, ok := s.Source.(stream.Generation); ok {
			name, err := g.Generation(ctx, s.Query)
			if err != nil {
				return fmt.Errorf("Generation: %w", err)
			}
			names[i] += fmt.Sprintf("generation %q ", name)
		}
		if sc, ok := s.Source.(stream.Schema); ok {
			names[i] += fmt.Sprintf("schema %q", sc.Schema(s.Query))
		}
	}
	if names[0] != names[1] {
		return fmt.Errorf("the source was %s, and after it had been read it is %s: positions would be refused", names[0], names[1])
	}
	sizer, ok := s.Source.(stream.Sizer)
	if !ok {
		return nil
	}
	size, err := sizer.Size(ctx, s.Query)
	if err != nil {
		return fmt.Errorf("Size: %w", err)
	}
	if size != 0 && size != uint64(s.Count) {
		return fmt.Errorf("Size is %d, and there are %d records; a source that does not know says 0", size, s.Count)
	}
	return nil
}

func checkNoLeak(s SourceUnderTest) error {
	if _, err := readSource(s, nil, s.Count); err != nil { // pools fill, lazily started things start
		return err
	}
	before := goleak.IgnoreCurrent()
	for i := range 10 {
		err := func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 6*sourcePatience)
			defer cancel()
			c, err := openSource(ctx, s, nil)
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = readCursor(ctx, c, i%s.Count)
			return err
		}()
		if err != nil {
			return err
		}
	}
	if err := goleak.Find(before); err != nil {
		return fmt.Errorf("cursors that are closed leave goroutines: %w", err)
	}
	return nil
}
