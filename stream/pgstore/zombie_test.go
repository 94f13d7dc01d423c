//go:build unix

package pgstore

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/jobsql"
)

// The tests below freeze a worker process at a bad moment, let another take its job, and let it go on.
const zombieEnv = "LEVADA_TEST_ZOMBIE"

// zombieOrder are the arguments of the process to be frozen.
type zombieOrder struct {
	DSN   string
	Where string
	Lease stream.Lease
	Prev  stream.Checkpoint
}

const zombieIdle = 1500 * time.Millisecond

// storeOnce stores records where each can be only once.
func storeOnce(ctx context.Context, tx pgx.Tx, b *stream.Batch) error {
	for _, r := range b.Records {
		if _, err := tx.Exec(ctx, `insert into once values ($1, $2)`, int64(r.Seq), int64(b.Epoch)); err != nil {
			return err
		}
	}
	return nil
}

func TestMain(m *testing.M) {
	if order := os.Getenv(zombieEnv); order != "" {
		fmt.Println("outcome:", zombie(order))
		return
	}
	goleak.VerifyTestMain(m)
}

// freeze tells the test that it is time to stop this process, and returns once the test lets it go on.
func freeze() {
	fmt.Println("freeze")
	_, _ = os.Stdin.Read(make([]byte, 1))
}

// zombie is the life of the process that is frozen. It returns the outcome of its commit in one word.
func zombie(text string) string {
	var order zombieOrder
	if err := json.Unmarshal([]byte(text), &order); err != nil {
		return err.Error()
	}
	ctx := context.Background()
	store, err := Open(ctx, order.DSN, WithLimits(Limits{Idle: zombieIdle}))
	if err != nil {
		return err.Error()
	}
	switch order.Where {
	case "in the handler":
		err = store.Sink(func(ctx context.Context, tx pgx.Tx, b *stream.Batch) error {
			err := storeOnce(ctx, tx, b)
			freeze()
			return err
		}).Commit(ctx, step(order.Lease, order.Prev))
	case "before the transaction":
		freeze()
		err = store.Sink(storeOnce).Commit(ctx, step(order.Lease, order.Prev))
	case "before COMMIT":
		err = fencedThenFrozen(ctx, store, order)
	}
	switch {
	case err == nil:
		return "committed"
	case errors.Is(err, stream.ErrFenced):
		return "fenced"
	case sqlState(err) == "25P03":
		return "terminated"
	}
	return fmt.Sprintf("failed: %v", err)
}

// fencedThenFrozen does what Commit does, but sends the COMMIT apart, as a sink would that could not send it along: it freezes when
// it holds the lock on the checkpoint.
func fencedThenFrozen(ctx context.Context, store *Store, order zombieOrder) error {
	s := store.Sink(nil).(*sink)
	tx, err := s.pool.BeginTx(ctx, pgx.TxOptions{BeginQuery: s.begin})
	if err != nil {
		return err
	}
	c := step(order.Lease, order.Prev)
	if err := storeOnce(ctx, tx, c.Batch); err != nil {
		return err
	}
	next, _, err := c.Result()
	if err != nil {
		return err
	}
	batch := &pgx.Batch{}
	s.advance(batch, c, next, nil, true)
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return err
	}
	freeze()
	return tx.Commit(ctx)
}

func TestZombies(t *testing.T) {
	for where, outcomes := range map[string]string{
		"in the handler":         "terminated",
		"before the transaction": "fenced",
		"before COMMIT":          "terminated",
	} {
		t.Run(where, func(t *testing.T) {
			dsn := testserver.Postgres(t)
			pool := connect(t, dsn)
			s := open(t, pool, WithLimits(Limits{Idle: zombieIdle}))
			mustExec(t, pool, `create table once (n bigint primary key, epoch bigint not null)`)
			sink := s.Sink(storeOnce)
			old := claim(t, s)
			start := fence(t, sink, old)
			if err := sink.Commit(t.Context(), step(old, start)); err != nil {
				t.Fatal(err)
			}
			before := fence(t, sink, old)

			order, err := json.Marshal(zombieOrder{DSN: dsn, Where: where, Lease: old, Prev: before})
			if err != nil {
				t.Fatal(err)
			}
			child := exec.Command(os.Args[0])
			child.Env = append(os.Environ(), zombieEnv+"="+string(order))
			child.Stderr = os.Stderr
			input, inErr := child.StdinPipe()
			output, outErr := child.StdoutPipe()
			if err := errors.Join(inErr, outErr, child.Start()); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
			lines := bufio.NewScanner(output)
			if !lines.Scan() || lines.Text() != "freeze" {
				t.Fatalf("the process said %q, error %v", lines.Text(), lines.Err())
			}
			if err := child.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			waitFrozen(t, child.Process.Pid)

			// The job's row may be locked by the frozen one, which keeps it from being claimed only until its limit.
			ctx, cancel := context.WithTimeout(t.Context(), zombieIdle+10*time.Second)
			defer cancel()
			next := takeOver(ctx, t, s, pool)
			got, err := sink.Fence(ctx, next)
			if err != nil {
				t.Fatalf("the new owner could not fence: %v", err)
			}
			if !jobsql.Same(got, before) {
				t.Fatalf("the new owner was given the checkpoint %+v, want %+v", got, before)
			}
			for range 3 {
				if err := sink.Commit(ctx, step(next, got)); err != nil {
					t.Fatalf("the new owner could not commit: %v", err)
				}
				if got, err = sink.Fence(ctx, next); err != nil {
					t.Fatal(err)
				}
			}

			if _, err := input.Write([]byte("\n")); err != nil {
				t.Fatal(err)
			}
			if err := child.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			outcome := ""
			for lines.Scan() {
				if text, ok := strings.CutPrefix(lines.Text(), "outcome: "); ok {
					outcome = text
				}
			}
			if outcome != outcomes {
				t.Errorf("the zombie's commit: %s, want %s", outcome, outcomes)
			}
			if after := fence(t, sink, next); !jobsql.Same(after, got) {
				t.Errorf("the zombie changed the checkpoint from %+v to %+v", got, after)
			}
			var count, stale int
			if err := pool.QueryRow(t.Context(), `select count(*), count(*) filter (where n > 1 and epoch <> $1) from once`, int64(next.Epoch)).Scan(&count, &stale); err != nil {
				t.Fatal(err)
			}
			if count != int(got.Seq) || stale != 0 {
				t.Errorf("%d effects, %d of the zombie, want %d, 0", count, stale, got.Seq)
			}
		})
	}
}

// takeOver makes the next owner of job "a", once its row is free.
func takeOver(ctx context.Context, t *testing.T, s *Store, pool *pgxpool.Pool) stream.Lease {
	t.Helper()
	if _, err := s.Expire(ctx, stream.ExpireFilter{All: true}); err != nil {
		t.Fatal(err)
	}
	for ctx.Err() == nil {
		got, err := s.Claim(ctx, stream.Claim{Owner: stream.Self(), TTL: time.Hour, Max: 1})
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 1 {
			return got[0].Lease()
		}
	}
	t.Fatal("the job could not be claimed")
	return stream.Lease{}
}

// waitFrozen returns once the process is stopped.
func waitFrozen(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		var status syscall.WaitStatus
		if got, err := syscall.Wait4(pid, &status, syscall.WUNTRACED|syscall.WNOHANG, nil); err != nil {
			t.Fatal(err)
		} else if got == pid && status.Stopped() {
			return
		} else if got == pid {
			t.Fatalf("the process ended instead of freezing: %v", status)
		}
	}
	t.Fatal("the process did not freeze")
}
