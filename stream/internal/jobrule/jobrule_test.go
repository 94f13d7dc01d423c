package jobrule

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/stream"
)

// TestJobsThatNoStoreCouldKeepAreRefused: the error names the field, so that the caller knows what to change.
func TestJobsThatNoStoreCouldKeepAreRefused(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxName+1)
	for want, job := range map[string]stream.Job{
		"Stream is empty":                           {ID: "a"},
		`ID is "a b", but must hold neither white`:  {ID: "a b", Stream: "users"},
		`ID is "a\x00b"`:                            {ID: "a\x00b", Stream: "users"},
		`Stream is "two\nlines"`:                    {Stream: "two\nlines"},
		`Stream is "\xff"`:                          {Stream: "\xff"},
		"Stream has 1025 bytes":                     {Stream: long},
		`DedupeKey is "k\x00"`:                      {Stream: "users", DedupeKey: "k\x00"},
		"DedupeKey has 1025 bytes":                  {Stream: "users", DedupeKey: long},
		"Target has 1025 bytes":                     {Stream: "users", Target: long},
		`OnBad is "skip", but must be "quarantine"`: {Stream: "users", OnBad: "skip"},
		"MaxBad is -2":                              {Stream: "users", MaxBad: -2},
	} {
		if _, err := Job(job); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+.60v: error %v, want %q in it", job, err, want)
		}
	}
}

func TestJobsGetAnIDAndAPolicy(t *testing.T) {
	t.Parallel()
	first, err := Job(stream.Job{Stream: "users", DedupeKey: "a key with spaces", MaxBad: stream.None})
	second, err2 := Job(stream.Job{Stream: "users"})
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	if first.ID == "" || first.ID == second.ID || first.OnBad != stream.Quarantine || first.MaxBad != stream.None {
		t.Errorf("the jobs are %+v and %+v", first, second)
	}
	if kept, err := Job(stream.Job{ID: "mine", Stream: "users", OnBad: stream.HaltJob}); err != nil || kept.ID != "mine" || kept.OnBad != stream.HaltJob {
		t.Errorf("what is set became %+v, error %v", kept, err)
	}
}

// TestAJobForOtherRecordsIsNotTheSame: the caller would take the records of the first for its own. How they are moved may differ.
func TestAJobForOtherRecordsIsNotTheSame(t *testing.T) {
	t.Parallel()
	found := stream.Job{ID: "a", Stream: "users", Target: "dns:///users", Query: []byte("1"), DedupeKey: "k"}
	for _, c := range []struct {
		name   string
		change func(*stream.Job)
		want   string // in the error; empty: the same
	}{
		{"nothing", func(*stream.Job) {}, ""},
		{"another ID, by the key", func(j *stream.Job) { j.ID = "b" }, ""},
		{"policy and time", func(j *stream.Job) {
			j.OnBad, j.MaxBad, j.Priority, j.NotBefore = stream.HaltJob, 7, 9, time.Unix(1, 0)
		}, ""},
		{"stream", func(j *stream.Job) { j.Stream = "orders" }, `Stream "users" (asked for: "orders")`},
		{"target", func(j *stream.Job) { j.Target = "" }, `Target "dns:///users" (asked for: "")`},
		{"query, by the key", func(j *stream.Job) { j.ID, j.Query = "b", nil }, "another DedupeKey"},
		{"key, by the ID", func(j *stream.Job) { j.DedupeKey = "other" }, "another ID"},
	} {
		asked := found
		c.change(&asked)
		err := Same(asked, found)
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, stream.ErrExists) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
	}
}

// TestNoMistakeEndsEveryLease: a filter that names no owner would end all of them.
func TestNoMistakeEndsEveryLease(t *testing.T) {
	t.Parallel()
	for _, bad := range []stream.ExpireFilter{{}, {Container: "main"}, {ExceptIncarnation: "x"}, {ClaimedBefore: time.Now()}} {
		if CheckExpire(bad) == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
	for _, good := range []stream.ExpireFilter{{PodUID: "p"}, {Incarnation: "i"}, {All: true, ExceptIncarnation: "i"}} {
		if err := CheckExpire(good); err != nil {
			t.Errorf("%+v: %v", good, err)
		}
	}
}

// TestPurgesDeleteOnlyWhatHasEnded, a minute ago or more, and by default no failed jobs.
func TestPurgesDeleteOnlyWhatHasEnded(t *testing.T) {
	t.Parallel()
	for _, bad := range []stream.Retention{{}, {OlderThan: time.Second}, {OlderThan: time.Hour, Max: -1}, {OlderThan: time.Hour, States: []stream.State{stream.Running}}, {OlderThan: time.Hour, States: []stream.State{stream.Paused}}} {
		if _, err := Retention(bad); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
	r, err := Retention(stream.Retention{OlderThan: time.Hour})
	if err != nil || r.Max != 10000 || !slices.Equal(r.States, []stream.State{stream.Completed, stream.Cancelled}) {
		t.Errorf("the defaults are %+v, error %v", r, err)
	}
}

// TestTextsOfErrorsFitEveryDatabase: Postgres takes neither a zero byte nor bytes that are not UTF-8, and the transaction of the quarantine would fail.
func TestTextsOfErrorsFitEveryDatabase(t *testing.T) {
	t.Parallel()
	if got := Text("a\x00b\xff"); got != "a\ufffdb\ufffd" {
		t.Errorf("the text is %q", got)
	}
	kept := History(HistoryText([]stream.Attempt{{Class: stream.ClassPanic, Error: "odd \xff\x00", Stack: "main\x00"}}))
	if len(kept) != 1 || kept[0].Class != stream.ClassPanic || kept[0].Error != "odd \ufffd\ufffd" || kept[0].Stack != "main\ufffd" {
		t.Errorf("the history is %+v", kept)
	}
	for _, none := range []string{"", "{", "null", `{"a":1}`} {
		if got := History(none); len(got) != 0 {
			t.Errorf("%q gives the history %+v", none, got)
		}
	}
}

// sinkJobs are the tables of a sink that has the jobs named, all old enough.
type sinkJobs struct {
	jobs    []string
	deleted []string
}

func (s *sinkJobs) Old(_ context.Context, _ stream.SinkRetention, _ bool, after string, limit int) (page []string, err error) {
	for _, id := range s.jobs {
		if id > after && len(page) < limit {
			page = append(page, id)
		}
	}
	return page, nil
}

func (s *sinkJobs) Delete(_ context.Context, _ stream.SinkRetention, _ bool, jobs []string) (int, error) {
	s.deleted = append(s.deleted, jobs...)
	return len(jobs), nil
}

// knownJobs is a job store that has some jobs, or cannot be read.
type knownJobs struct {
	stream.Store
	ids []string
	err error
}

func (k knownJobs) Get(_ context.Context, id string) (stream.Status, error) {
	if k.err != nil {
		return stream.Status{}, k.err
	}
	if !slices.Contains(k.ids, id) {
		return stream.Status{}, fmt.Errorf("job %s: %w", id, stream.ErrNotFound)
	}
	return stream.Status{}, nil
}

// TestASinkKeepsWhatItsJobStoreStillHas: without its checkpoint, a job that is retried would start from the first record and store its records twice.
func TestASinkKeepsWhatItsJobStoreStillHas(t *testing.T) {
	t.Parallel()
	var all []string
	for i := range 2*purgePage + 10 { // more than two pages
		all = append(all, fmt.Sprintf("job-%05d", i))
	}
	tables := &sinkJobs{jobs: all}
	n, err := PurgeSink(t.Context(), stream.SinkRetention{OlderThan: time.Hour, Jobs: knownJobs{ids: all[5:8]}}, tables)
	if want := slices.Concat(all[:5], all[8:]); err != nil || n != len(want) || !slices.Equal(tables.deleted, want) {
		t.Errorf("%d of %d jobs were deleted, error %v; want all but %v", n, len(all), err, all[5:8])
	}
	tables = &sinkJobs{jobs: all}
	if n, err := PurgeSink(t.Context(), stream.SinkRetention{OlderThan: time.Hour, Max: 7}, tables); err != nil || n != 7 {
		t.Errorf("%d jobs were deleted, error %v, want 7 at most", n, err)
	}
	lost := errors.New("connection lost")
	tables = &sinkJobs{jobs: all}
	if _, err := PurgeSink(t.Context(), stream.SinkRetention{OlderThan: time.Hour, Jobs: knownJobs{err: lost}}, tables); !errors.Is(err, lost) || len(tables.deleted) > 0 {
		t.Errorf("while the job store cannot be read, %d jobs were deleted, error %v", len(tables.deleted), err)
	}
}
