package filesink

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/sink/render"
	"github.com/levada-io/levada/internal/dataplane/sink/sinktest"
	"github.com/levada-io/levada/internal/flow"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(childPath); path != "" {
		child(path)
		return
	}
	goleak.VerifyTestMain(m)
}

func TestConformance(t *testing.T) {
	for name, cfg := range map[string]Config{"fsync": {}, "no fsync": {NoFsync: true}, "json": {Format: render.JSON}} {
		t.Run(name, func(t *testing.T) {
			sinktest.Run(t, func(t *testing.T) sinktest.Harness {
				cfg := cfg
				cfg.Path = filepath.Join(t.TempDir(), "out")
				return sinktest.Harness{
					ExactlyOnce: true,
					Open:        func(t *testing.T) sink.Writer { return reopen(t, cfg) },
					Delivered: func(t *testing.T) []string {
						got := lines(t, cfg.Path)
						for i, line := range got {
							if cfg.Format != render.JSON {
								break
							}
							var m struct{ Value string }
							if err := json.Unmarshal([]byte(line), &m); err != nil {
								t.Fatal(err)
							}
							got[i] = m.Value
						}
						return got
					},
				}
			})
		})
	}
}

func reopen(t *testing.T, cfg Config) *Writer {
	t.Helper()
	w, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close(context.Background()) })
	return w
}

func lines(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 0 && b[len(b)-1] != '\n' {
		t.Fatalf("%s ends in the middle of a line: %q", path, b[max(0, len(b)-40):])
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, w *Writer, lane string, lo, hi, floor uint64) {
	t.Helper()
	_, err := w.Write(t.Context(), sinktest.Block(lane, lo, hi, floor))
	must(t, err)
}

// wantLane fails unless the file has the positions 1..hi of a lane once each, in order.
func wantLane(t *testing.T, path, lane string, hi uint64) {
	t.Helper()
	next := uint64(1)
	for i, line := range lines(t, path) {
		if !strings.HasPrefix(line, lane+"/") {
			continue
		}
		if line != fmt.Sprintf("%s/%d", lane, next) {
			t.Fatalf("line %d is %q, want %s/%d", i+1, line, lane, next)
		}
		next++
	}
	if next != hi+1 {
		t.Fatalf("%s ends at %d, want %d", lane, next-1, hi)
	}
}

func refuses(t *testing.T, err, kind error, words ...string) {
	t.Helper()
	if err == nil || kind != nil && !errors.Is(err, kind) {
		t.Fatalf("error is %v, want %v", err, kind)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Fatalf("error %q does not say %q", err, w)
		}
	}
}

func TestCommitsAreShared(t *testing.T) {
	var syncs int
	fs := osFiles
	hold, leads := make(chan struct{}), make(chan struct{}, 100)
	fs.open = func(path string, flag int) (file, error) {
		f, err := osFiles.open(path, flag)
		if err != nil || strings.HasSuffix(path, ".new") {
			return f, err
		}
		return &spy{f, func() {
			leads <- struct{}{}
			<-hold
			syncs++ // only ever by the one that leads
		}}, nil
	}
	path := filepath.Join(t.TempDir(), "out")
	w, err := open(Config{Path: path}, fs)
	must(t, err)
	const n = 20
	var writers sync.WaitGroup
	for i := range n {
		writers.Go(func() {
			if _, err := w.Write(t.Context(), sinktest.Block(fmt.Sprintf("in/%d", i), 1, 3, 0)); err != nil {
				t.Error(err)
			}
		})
		if i == 0 {
			<-leads // the first commits alone
		}
	}
	for w.queue.Waiting() < n-1 { // all others wait behind the first
		runtime.Gosched()
	}
	close(hold)
	writers.Wait()
	must(t, w.Close(t.Context()))
	if syncs > 2 { // the data file's, twice; the first journal is not spied on
		t.Fatalf("%d commits for %d writes at once", syncs, n)
	}
	for i := range n {
		wantLane(t, path, fmt.Sprintf("in/%d", i), 3)
	}
}

type spy struct {
	file
	onSync func()
}

func (s *spy) Sync() error { s.onSync(); return s.file.Sync() }

func TestWithdrawnWriteIsNotWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	w := reopen(t, Config{Path: path})
	release, err := w.queue.Hold(t.Context()) // somebody commits for long
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := w.Write(ctx, sinktest.Block("in/0", 1, 3, 0))
		result <- err
	}()
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	release()
	write(t, w, "in/1", 1, 1, 0)
	wantLane(t, path, "in/0", 0)
}

func TestUncommittedTailIsCut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	w := reopen(t, Config{Path: path})
	write(t, w, "in/0", 1, 5, 0)
	whole, err := os.ReadFile(path + Suffix)
	must(t, err)
	must(t, w.Close(t.Context()))
	must(t, os.WriteFile(path+Suffix, whole, 0o644)) // as a crash leaves it: Close notes that nothing of ours follows
	appendTo(t, path, "in/0/6\nin/0/")
	appendTo(t, path+Suffix, string(whole[len(whole)-20:])+"torn")
	w = reopen(t, Config{Path: path})
	wantLane(t, path, "in/0", 5)
	write(t, w, "in/0", 4, 8, 0)
	must(t, w.Close(t.Context()))
	wantLane(t, path, "in/0", 8)
	if again, _ := os.ReadFile(path + Suffix); !bytes.HasPrefix(again, whole) {
		t.Fatal("the valid part of the journal was changed")
	}
}

func appendTo(t *testing.T, path, s string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o644)
	must(t, err)
	_, err = f.WriteString(s)
	must(t, errors.Join(err, f.Close()))
}

func TestRefusals(t *testing.T) {
	begin := func(t *testing.T) string {
		path := filepath.Join(t.TempDir(), "out")
		w := reopen(t, Config{Path: path})
		write(t, w, "in/0", 1, 5, 0)
		write(t, w, "in/0", 6, 9, 0)
		must(t, w.Close(t.Context()))
		return path
	}
	t.Run("shorter than the journal", func(t *testing.T) {
		path := begin(t)
		must(t, os.Truncate(path, 3))
		_, err := New(Config{Path: path})
		refuses(t, err, ErrShort, "3 bytes", "63 were committed")
	})
	t.Run("journal is gone", func(t *testing.T) {
		path := begin(t)
		must(t, os.Remove(path+Suffix))
		_, err := New(Config{Path: path})
		refuses(t, err, ErrForeign, "append")
		wantLane(t, path, "in/0", 9)
	})
	t.Run("damaged in the middle", func(t *testing.T) {
		path := begin(t)
		b, err := os.ReadFile(path + Suffix)
		must(t, err)
		b[len(b)/2] ^= 1
		must(t, os.WriteFile(path+Suffix, b, 0o644))
		_, err = New(Config{Path: path})
		refuses(t, err, ErrCorrupt)
		wantLane(t, path, "in/0", 9)
	})
	t.Run("written by a newer version", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "out")
		must(t, os.WriteFile(path+Suffix, endRecord(append(beginRecord(nil), kindSnapshot, journalVersion+1, 0), 0), 0o644))
		_, err := New(Config{Path: path})
		refuses(t, err, ErrCorrupt, "newer version")
	})
	t.Run("two sinks", func(t *testing.T) {
		path := begin(t)
		reopen(t, Config{Path: path})
		_, err := New(Config{Path: path})
		refuses(t, err, ErrLocked, "of its own")
	})
	t.Run("after Close", func(t *testing.T) {
		w := reopen(t, Config{Path: begin(t)})
		must(t, w.Close(t.Context()))
		_, err := w.Write(t.Context(), sinktest.Block("in/0", 1, 1, 0))
		refuses(t, err, ErrClosed)
	})
	t.Run("config", func(t *testing.T) {
		_, err := New(Config{})
		refuses(t, err, nil, "path: required")
		_, err = New(Config{Path: t.TempDir()})
		refuses(t, err, nil, "path: ")
		_, err = New(Config{Path: os.DevNull})
		refuses(t, err, nil, "use the stdout sink")
		_, err = New(Config{Path: filepath.Join(t.TempDir(), "x"), Format: "xml"})
		refuses(t, err, nil, "raw or json")
	})
}

func TestAppendKeepsWhatIsThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	must(t, os.WriteFile(path, []byte("somebody else's"), 0o644))
	for range 2 {
		w := reopen(t, Config{Path: path, Append: true})
		write(t, w, "in/0", 1, 2, 0)
		must(t, w.Close(t.Context()))
	}
	if got := strings.Join(lines(t, path), "|"); got != "somebody else's|in/0/1|in/0/2" {
		t.Fatalf("%q", got)
	}
}

func TestJournalIsCompacted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	cfg := Config{Path: path, NoFsync: true, MaxIDs: 50}
	w := reopen(t, cfg)
	w.compactAt = 4 << 10
	var largest int64
	for p := uint64(1); p <= 2000; p++ {
		write(t, w, "in/0", p, p, max(p, 4)-4)
		write(t, w, "byid/0", p, p, 0)
		largest = max(largest, w.journalEnd)
		if w.compactAt == compactAt {
			w.compactAt = 4 << 10
		}
		if p%300 == 0 {
			must(t, w.Close(t.Context()))
			w = reopen(t, cfg)
			w.compactAt = 4 << 10
			write(t, w, "in/0", p-2, p, p-3)
			write(t, w, "byid/0", p-40, p, 0)
		}
	}
	must(t, w.Close(t.Context()))
	wantLane(t, path, "in/0", 2000)
	wantLane(t, path, "byid/0", 2000)
	if largest > 16<<10 {
		t.Fatalf("the journal grew to %d bytes", largest)
	}
	if _, err := os.Stat(path + Suffix + ".new"); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a half-made journal was left: %v", err)
	}
}

// faults makes each operation fail now and then: writes stop in the middle, an fsync fails with or without having written.
type faults struct {
	rand  *rand.Rand
	often float64
}

var errFault = errors.New("fault")

func (f *faults) hit() bool { return f.rand.Float64() < f.often }

type faultyFile struct {
	file
	*faults
}

func (f *faultyFile) WriteAt(b []byte, at int64) (int, error) {
	if f.hit() {
		n, _ := f.file.WriteAt(b[:f.rand.IntN(len(b)+1)], at)
		return n, syscall.ENOSPC
	}
	return f.file.WriteAt(b, at)
}

func (f *faultyFile) Truncate(size int64) error {
	if f.hit() {
		return errFault
	}
	return f.file.Truncate(size)
}

func (f *faultyFile) Sync() error {
	if f.hit() {
		return errFault
	}
	return f.file.Sync()
}

func (f *faultyFile) ReadAt(b []byte, at int64) (int, error) {
	if f.hit() {
		return 0, errFault
	}
	return f.file.ReadAt(b, at)
}

func (f *faults) fileSystem() fileSystem {
	fs := osFiles
	fs.open = func(path string, flag int) (file, error) {
		if f.hit() {
			return nil, errFault
		}
		real, err := osFiles.open(path, flag)
		if err != nil {
			return nil, err
		}
		return &faultyFile{real, f}, nil
	}
	fs.rename = func(from, to string) error {
		if f.hit() {
			return errFault
		}
		return os.Rename(from, to)
	}
	fs.syncDir = func(string) error {
		if f.hit() {
			return errFault
		}
		return nil
	}
	return fs
}

// TestFaults lets anything fail at any time. Every write is repeated until it succeeds, as the vertex does.
func TestFaults(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			f := &faults{rand: rand.New(rand.NewPCG(seed, 1))}
			path := filepath.Join(t.TempDir(), "out")
			var w *Writer
			restart := func() {
				f.often = 0
				if w != nil {
					must(t, w.Close(t.Context()))
				}
				var err error
				if w, err = open(Config{Path: path}, f.fileSystem()); err != nil {
					t.Fatal(err)
				}
				w.compactAt = 2 << 10
				f.often = 0.15
			}
			restart()
			done := map[string]uint64{}
			for done["in/0"] < 200 {
				lane := []string{"in/0", "in/1", "byid/0"}[f.rand.IntN(3)]
				lo := done[lane] - min(done[lane], uint64(f.rand.IntN(5))) + 1
				hi := max(done[lane]+uint64(f.rand.IntN(4)), lo)
				for try := 0; ; try++ {
					_, err := w.Write(t.Context(), sinktest.Block(lane, lo, hi, lo-1))
					if err == nil {
						break
					}
					if try > 1000 {
						t.Fatalf("still failing: %v", err)
					}
					if f.rand.IntN(20) == 0 {
						restart()
					}
				}
				done[lane] = max(done[lane], hi)
				w.compactAt = min(w.compactAt, w.journalEnd+2<<10)
			}
			restart()
			must(t, w.Close(t.Context()))
			for lane, hi := range done {
				wantLane(t, path, lane, hi)
			}
		})
	}
}

func TestFullDiskGivesRoomBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	f := &faults{rand: rand.New(rand.NewPCG(1, 1))}
	w, err := open(Config{Path: path}, f.fileSystem())
	must(t, err)
	write(t, w, "in/0", 1, 10, 0)
	full := &fullDisk{file: w.data, room: 30}
	w.data = full
	before, err := os.Stat(path)
	must(t, err)
	for range 3 {
		_, err := w.Write(t.Context(), sinktest.Block("in/0", 11, 20, 0))
		refuses(t, err, syscall.ENOSPC, path)
		now, err := os.Stat(path)
		must(t, err)
		if now.Size() != before.Size() {
			t.Fatalf("the file has %d bytes after the failure, had %d", now.Size(), before.Size())
		}
	}
	full.room = 1 << 20
	write(t, w, "in/0", 11, 20, 0)
	must(t, w.Close(t.Context()))
	wantLane(t, path, "in/0", 20)
}

type fullDisk struct {
	file
	room int
}

func (d *fullDisk) WriteAt(b []byte, at int64) (int, error) {
	if len(b) > d.room {
		n, _ := d.file.WriteAt(b[:d.room], at)
		return n, syscall.ENOSPC
	}
	return d.file.WriteAt(b, at)
}

func FuzzJournal(f *testing.F) {
	f.Add(sampleJournal(4), 0, byte(0))
	f.Add(sampleJournal(3), 70, byte(1))
	f.Fuzz(func(t *testing.T, journal []byte, at int, flip byte) {
		cfg := Config{}.withDefaults()
		if len(journal) > 0 {
			journal = bytes.Clone(journal)
			journal[uint(at)%uint(len(journal))] ^= flip
		}
		s := (&Writer{cfg: cfg}).newState()
		s.keepIDs = true
		valid, err := s.replay(journal)
		if valid < 0 || valid > len(journal) || s.end < 0 && err == nil {
			t.Fatalf("valid = %d of %d, end = %d", valid, len(journal), s.end)
		}
		if err != nil {
			return
		}
		// The valid part alone means the same, and so does a snapshot of it.
		for _, same := range [][]byte{journal[:valid], appendSnapshot(nil, s.end, s.seen, s.ids, s.id)} {
			again := (&Writer{cfg: cfg}).newState()
			n, err := again.replay(same)
			if err != nil || n != len(same) || again.end != s.end || !bytes.Equal(again.seen.Marshal(), s.seen.Marshal()) || again.seen.IDs() != s.seen.IDs() {
				t.Fatalf("read again: %d of %d bytes, end %d and %d, %v", n, len(same), again.end, s.end, err)
			}
		}
	})
}

// TestAnyCutOfTheJournalIsAnEarlierState cuts and damages a journal at every byte.
func TestAnyCutOfTheJournalIsAnEarlierState(t *testing.T) {
	journal := sampleJournal(5)
	ends := map[int64]bool{0: true, 100: true, 200: true, 300: true, 400: true, 500: true}
	for n := range journal {
		s := (&Writer{cfg: Config{}.withDefaults()}).newState()
		valid, err := s.replay(journal[:n])
		if err == nil && (!ends[s.end] || valid > n) {
			t.Fatalf("cut at %d: end %d, valid %d", n, s.end, valid)
		}
		bad := bytes.Clone(journal)
		bad[n] ^= 0x10
		s = (&Writer{cfg: Config{}.withDefaults()}).newState()
		valid, err = s.replay(bad)
		switch last := len(journal) - lastRecord(journal); {
		case n < last && !errors.Is(err, ErrCorrupt):
			t.Fatalf("byte %d damaged, before the last record: %v", n, err)
		case n >= last && (err != nil || valid != last || s.end != 400):
			t.Fatalf("byte %d damaged, in the last record: %d, %d, %v", n, valid, s.end, err)
		}
	}
}

func lastRecord(journal []byte) int { return len(journal) - bytes.LastIndex(journal, recordMagic) }

func sampleJournal(commits int) []byte {
	s := (&Writer{cfg: Config{}.withDefaults()}).newState()
	j := appendSnapshot(nil, 0, s.seen, []seenID{{time.Unix(0, 5), "old"}}, fileID{1, 2})
	for i := range commits {
		start := len(j)
		j = appendCommit(beginRecord(j), int64(i+1)*100, time.Unix(int64(i), 0), 2)
		j = appendBlock(j, sinktest.Block("in/0", uint64(i)*10+1, uint64(i)*10+10, uint64(i)))
		j = appendBlock(j, &flow.Block{Lane: "byid/0", Lo: 1, Hi: 1, ByID: true, Messages: []flow.Message{{ID: fmt.Sprint(i)}}})
		j = endRecord(j, start)
	}
	return j
}

func BenchmarkWrite(b *testing.B) {
	for name, cfg := range map[string]Config{"raw": {}, "json": {Format: render.JSON}, "raw without fsync": {NoFsync: true}} {
		b.Run(name, func(b *testing.B) {
			cfg.Path = filepath.Join(b.TempDir(), "out")
			w, err := New(cfg)
			if err != nil {
				b.Fatal(err)
			}
			const size = 500
			block := sinktest.Block("in/0", 1, size, 0)
			for i := range block.Messages {
				block.Messages[i].Value = bytes.Repeat([]byte("x"), 256)
			}
			var before, after syscall.Rusage
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
			n := 0
			for b.Loop() {
				block.Floor = block.Lo - 1
				if _, err := w.Write(b.Context(), block); err != nil {
					b.Fatal(err)
				}
				n += size
				block.Lo, block.Hi = block.Lo+size, block.Hi+size
				for i := range block.Messages {
					block.Messages[i].Pos += size
				}
				if n%1_000_000 == 0 { // the disk here is small
					b.StopTimer()
					_ = w.Close(b.Context())
					_, _ = os.Truncate(w.cfg.Path, 0), os.Remove(w.cfg.Path+Suffix)
					if w, err = New(w.cfg); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
			}
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
			cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			b.ReportMetric(float64(cpu)/float64(n), "cpu-ns/message")
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "messages/s")
			_ = w.Close(b.Context())
		})
	}
}
