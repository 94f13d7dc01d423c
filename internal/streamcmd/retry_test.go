package streamcmd

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/sqlitestore"
)

// After an outage a person has many failed jobs to retry, and only those that failed for it: each is named, and the last line has the numbers.
func TestRetryOfAllJobsThatFailedForAReason(t *testing.T) {
	path := filepath.Join(t.TempDir(), "jobs.db")
	store, err := sqlitestore.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for i, reason := range []stream.Reason{stream.ReasonNoProgress, stream.ReasonNoProgress, stream.ReasonHalted, stream.ReasonPermissionDenied} {
		if _, err := store.Submit(t.Context(), stream.Job{ID: fmt.Sprintf("job-%d", i), Stream: []string{"users", "orders"}[i%2]}); err != nil {
			t.Fatal(err)
		}
		claimed, err := store.Claim(t.Context(), stream.Claim{Owner: stream.Self(), TTL: time.Minute, Max: 1})
		if err != nil || len(claimed) != 1 {
			t.Fatal(claimed, err)
		}
		if err := store.Release(t.Context(), claimed[0].Lease(), stream.Release{State: stream.Failed, Reason: reason, LastError: "why", RetryState: stream.RetryState{Failures: 9}}); err != nil {
			t.Fatal(err)
		}
	}
	states := func() (text string) {
		for i := range 4 {
			job, err := store.Get(t.Context(), fmt.Sprintf("job-%d", i))
			if err != nil {
				t.Fatal(err)
			}
			text += string(job.State) + " "
		}
		return strings.TrimSpace(text)
	}
	for _, c := range []struct{ args, stdout, stderr, states string }{
		{"--reason INCOMPLETE", "", "none of 4 failed jobs failed for INCOMPLETE", "failed failed failed failed"},
		{"--reason NO_PROGRESS --dry-run", "would retry job-1  stream orders, failed with NO_PROGRESS after 0 records", "2 of 4 failed jobs would be retried", "failed failed failed failed"},
		{"--reason no_progress --stream orders", "retried job-1 ", "1 of 2 failed jobs retried", "failed ready failed failed"},
		{"--reason NO_PROGRESS,PERMISSION_DENIED", "retried job-0 ", "2 of 3 failed jobs retried", "ready ready failed ready"},
		{"-o json", `"id":"job-2"`, "1 of 1 failed jobs retried", "ready ready ready ready"},
		{"", "", "no job has failed, nothing to retry", "ready ready ready ready"},
	} {
		o := levada(t, append([]string{"stream", "retry", "--all", "--store", path}, strings.Fields(c.args)...)...)
		if o.Code != 0 || !strings.Contains(o.Stdout, c.stdout) || c.stdout == "" && o.Stdout != "" || !strings.Contains(o.Stderr, c.stderr) {
			t.Errorf("%q: exit code %d\n%s%s", c.args, o.Code, o.Stdout, o.Stderr)
		}
		if got := states(); got != c.states {
			t.Errorf("after %q the jobs are %s, not %s", c.args, got, c.states)
		}
	}
}

// A job that waits shows for what, since how long, and when it is tried again, in the list and alone.
func TestAWaitingJobShowsItsReason(t *testing.T) {
	path := filepath.Join(t.TempDir(), "jobs.db")
	store, err := sqlitestore.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if _, err := store.Submit(t.Context(), stream.Job{ID: "waits", Stream: "users"}); err != nil {
		t.Fatal(err)
	}
	claimed, err := store.Claim(t.Context(), stream.Claim{Owner: stream.Self(), TTL: time.Minute, Max: 1})
	if err != nil || len(claimed) != 1 {
		t.Fatal(claimed, err)
	}
	err = store.Release(t.Context(), claimed[0].Lease(), stream.Release{State: stream.Ready, After: time.Hour, Reason: stream.ReasonTooManyStreams, LastError: "2 streams are open, which is the limit",
		RetryState: stream.RetryState{Failures: 12, NoProgress: 90 * time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range []struct {
		args []string
		want []string
	}{
		{[]string{"list"}, []string{"REASON", "TOO_MANY_STREAMS", "2 streams are open"}},
		{[]string{"show", "waits"}, []string{"TOO_MANY_STREAMS: the producer serves as many streams as it may", "next attempt:", "the last 12 attempts failed, 1m30s without progress", "raise MaxStreams"}},
		{[]string{"show", "waits", "-o", "json"}, []string{`"reason": "TOO_MANY_STREAMS"`, `"failures": 12`}},
	} {
		o := levada(t, append(append([]string{"stream"}, command.args...), "--store", path)...)
		for _, want := range command.want {
			if o.Code != 0 || !strings.Contains(o.Stdout, want) {
				t.Errorf("%v: exit code %d, without %q:\n%s%s", command.args, o.Code, want, o.Stdout, o.Stderr)
			}
		}
	}
}
