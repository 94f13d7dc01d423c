package sqlitestore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/levada-io/levada/stream"
)

// Tests start this binary again as another process, with what it is to do in this variable, and the file in the next.
const (
	childDoes = "LEVADA_TEST_CHILD"
	childFile = "LEVADA_TEST_FILE"
)

func TestMain(m *testing.M) {
	if does := os.Getenv(childDoes); does != "" {
		fmt.Println(child(does, os.Getenv(childFile)))
		_, _ = io.Copy(io.Discard, os.Stdin) // until the test lets it go
		return
	}
	goleak.VerifyTestMain(m)
}

// child is the life of the other process. It keeps what it has until it ends.
func child(does, file string) string {
	s, err := Open(context.Background(), file)
	if err != nil {
		return err.Error()
	}
	switch does {
	case "open":
		_, err = s.Submit(context.Background(), stream.Job{Stream: "users"})
	case "lock":
		_, err = s.LockWorker()
	}
	if err != nil {
		return err.Error()
	}
	return "ok"
}

// start starts another process, and returns what it says.
func start(t *testing.T, does, file string) (said string, end func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDoes+"="+does, childFile+"="+file)
	cmd.Stderr = os.Stderr
	in, inErr := cmd.StdinPipe()
	out, outErr := cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
		t.Error(err) // not Fatal: some tests call this in goroutines
		return "", func() {}
	}
	ended := false
	end = func() {
		if !ended {
			ended = true
			in.Close()
			_ = cmd.Process.Kill() // what a process has locked must be free however it ends
			_ = cmd.Wait()
		}
	}
	t.Cleanup(end)
	said, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Error(err)
	}
	return strings.TrimSpace(said), end
}

func TestManyProcessesOpenAFreshFileAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "jobs.db")
	const processes = 5
	said := make(chan string, processes)
	for range processes {
		go func() {
			text, _ := start(t, "open", path)
			said <- text
		}()
	}
	for range processes {
		if text := <-said; text != "ok" {
			t.Errorf("a process could not open the file: %s", text)
		}
	}
	s := open(t, path)
	if all, err := s.List(t.Context(), stream.Filter{}); len(all) != processes || err != nil {
		t.Errorf("%d jobs, error %v, want %d", len(all), err, processes)
	}
	for name, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "page_size": "16384"} {
		var got string
		if err := s.write.QueryRow(`pragma ` + name).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %q, error %v, want %q", name, got, err, want)
		}
	}
	if _, err := s.read.Exec(`delete from levada_job`); err == nil {
		t.Error("the connections for reading can write")
	}
}

func TestOneWorkerPerFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "jobs.db")
	said, end := start(t, "lock", path)
	if said != "ok" {
		t.Fatal(said)
	}
	s := open(t, path)
	_, err := s.LockWorker()
	if !errors.Is(err, stream.ErrLocked) || !strings.Contains(err.Error(), filepath.Base(path)) || !strings.Contains(err.Error(), "Postgres") {
		t.Errorf("a second worker's error is %v", err)
	}
	// Callers other than workers are not kept out.
	if _, err := s.Submit(t.Context(), stream.Job{Stream: "users"}); err != nil {
		t.Error(err)
	}
	end()
	unlock, err := s.LockWorker()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, path).LockWorker(); !errors.Is(err, stream.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("a second worker's error in the same process is %v", err)
	}
	link := filepath.Join(t.TempDir(), "link.db")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, link).LockWorker(); !errors.Is(err, stream.ErrLocked) {
		t.Errorf("a second worker's error by another name of the file is %v", err)
	}
	if err := unlock(); err != nil {
		t.Error(err)
	}
	again, err := s.LockWorker()
	if err != nil {
		t.Fatal(err)
	}
	if err := again(); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text.db")
	if err := os.WriteFile(text, []byte(strings.Repeat("no database at all\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	newer := filepath.Join(dir, "newer.db")
	s := open(t, newer)
	mustExec(t, s.write, `insert into levada_job_version (version_id, is_applied) values (99, 1)`)
	for name, test := range map[string]struct {
		path, says string
		is         error
	}{
		"a text file":            {text, "not a SQLite database", nil},
		"a directory":            {dir, "not a regular file", nil},
		"a directory not there":  {filepath.Join(dir, "no", "jobs.db"), "must exist", os.ErrNotExist},
		"a directory like /proc": {"/proc/jobs.db", "writable", nil},
		"memory":                 {":memory:", "a file is needed", nil},
		"nothing":                {"", "a file is needed", nil},
		"newer tables":           {newer, "99", stream.ErrNewer},
	} {
		got, err := Open(t.Context(), test.path)
		if err == nil {
			got.Close()
			t.Errorf("%s was opened", name)
			continue
		}
		if !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), test.path) || test.is != nil && !errors.Is(err, test.is) {
			t.Errorf("%s: error %v, want one with %q", name, err, test.says)
		}
	}
}

func TestOddFileNames(t *testing.T) {
	for _, name := range []string{"a b.db", "50%.db", "what?.db", "x#y.db", "ü&_txlock=deferred.db"} {
		path := filepath.Join(t.TempDir(), name)
		open(t, path)
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSubmitTx(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "jobs.db"))
	for _, commit := range []bool{false, true} {
		tx, err := s.DB().BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if st, err := s.SubmitTx(t.Context(), tx, stream.Job{ID: "a", Stream: "users", DedupeKey: "k"}); err != nil || st.Existed {
			t.Errorf("%+v, error %v", st, err)
		}
		if st, err := s.SubmitTx(t.Context(), tx, stream.Job{Stream: "users", DedupeKey: "k"}); err != nil || st.ID != "a" || !st.Existed {
			t.Errorf("%+v, error %v", st, err)
		}
		end, want := tx.Rollback, stream.ErrNotFound
		if commit {
			end, want = tx.Commit, nil
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(t.Context(), "a"); !errors.Is(err, want) {
			t.Errorf("committed %v: error %v, want %v", commit, err, want)
		}
	}
}
