package pgstore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgstore"
)

// asRole returns a pool of the database's owner, and one of a role that may do there what it was granted.
func asRole(t *testing.T) (admin, app *pgxpool.Pool, role string) {
	t.Helper()
	dsn := testserver.Postgres(t)
	connect := func(change func(*pgxpool.Config)) *pgxpool.Pool {
		config, err := pgxpool.ParseConfig(dsn)
		if err != nil {
			t.Fatal(err)
		}
		change(config)
		pool, err := pgxpool.NewWithConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		return pool
	}
	admin = connect(func(*pgxpool.Config) {})
	t.Cleanup(admin.Close)
	role = "app_" + strings.ReplaceAll(stream.NewID(), "-", "")
	if _, err := admin.Exec(t.Context(), `create role `+role+` login password 'secret'`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := admin.Exec(context.Background(), `drop owned by `+role+` cascade; drop role `+role); err != nil {
			t.Error(err)
		}
	})
	if _, err := admin.Exec(t.Context(), `grant all on schema public to `+role); err != nil {
		t.Fatal(err)
	}
	app = connect(func(c *pgxpool.Config) { c.ConnConfig.User, c.ConnConfig.Password = role, "secret" })
	t.Cleanup(app.Close)
	return admin, app, role
}

// A privilege that is missing, and a table or column that is missing, is named as that, with the role, the database and what to do, and not taken for
// an outage, which nobody would look at. The job waits meanwhile: the other half of a rollout may be still to come.
func TestAMissingPrivilegeOrColumnIsNamedAndWaitedFor(t *testing.T) {
	for name, test := range map[string]struct {
		wrong, right string // run by the database's owner; %s is the role
		reason       stream.Reason
		says         []string
	}{
		"no right to insert into the handler's table": {`revoke all on orders from %s`, `grant all on orders to %s`, stream.ReasonPrivilege,
			[]string{"permission denied for table orders", "insert into orders", "role", "grant it"}},
		"no right to the offsets": {`revoke all on levada_offset from %s`, `grant all on levada_offset to %s`, stream.ReasonPrivilege,
			[]string{"permission denied for table levada_offset", "refuses", "role", "grant it"}},
		"no column in the handler's table": {`alter table orders drop column n -- %s`, `alter table orders add column n bigint -- %s`, stream.ReasonSchema,
			[]string{`column "n" of relation "orders"`, "insert into orders", "migration"}},
		"no handler's table": {`alter table orders rename to gone -- %s`, `alter table gone rename to orders -- %s`, stream.ReasonSchema,
			[]string{`relation "orders"`, "insert into orders", "migration"}},
		"no table of offsets": {`alter table levada_offset rename to gone -- %s`, `alter table gone rename to levada_offset -- %s`, stream.ReasonSchema,
			[]string{`relation "levada_offset"`, "see which versions Versions"}},
	} {
		t.Run(name, func(t *testing.T) {
			admin, app, role := asRole(t)
			run := func(sql string) {
				t.Helper()
				if _, err := admin.Exec(context.Background(), sql); err != nil {
					t.Error(err)
				}
			}
			if err := pgstore.Migrate(t.Context(), admin); err != nil {
				t.Fatal(err)
			}
			run(`create table orders (seq bigint, n bigint)`)
			run(`grant all on all tables in schema public to ` + role)
			waited := stream.Status{}
			job, rows := outages{records: 10, handle: func(ctx context.Context, tx pgx.Tx, b *stream.Batch) error {
				for _, r := range b.Records {
					if _, err := tx.Exec(ctx, `insert into orders (seq, n) values ($1, $2)`, int64(r.Seq), 7); err != nil {
						return err
					}
				}
				return nil
			}, look: func(s stream.Status) {
				if waited.ID == "" && s.State == stream.Ready && s.RetryState.Failures > 0 {
					waited = s
					run(fmt.Sprintf(test.right, role))
				}
			}, config: func(c *stream.WorkerConfig) {
				c.ReleaseAfterFailures = 2
				run(fmt.Sprintf(test.wrong, role))
			}}.run(t, app)
			if waited.Reason != test.reason {
				t.Errorf("the job waited for %s, expected %s: %s", waited.Reason, test.reason, waited.LastError)
			}
			for _, words := range append(test.says, app.Config().ConnConfig.Database) {
				if !strings.Contains(waited.LastError, words) {
					t.Errorf("the last error does not name %q: %s", words, waited.LastError)
				}
			}
			if test.reason == stream.ReasonPrivilege && !strings.Contains(waited.LastError, role) {
				t.Errorf("the last error does not name the role %s: %s", role, waited.LastError)
			}
			if job.State != stream.Completed || len(rows) != 0 || counted(t, admin, "orders") != 10 {
				t.Errorf("once it was put right the job is %s %s: %s; %d records are in quarantine", job.State, job.Reason, job.LastError, len(rows))
			}
		})
	}
}

// A privilege that stays missing fails the job after NoProgress, and not before: its reason stands in the text.
func TestAPrivilegeThatStaysMissingFailsTheJobAfterNoProgress(t *testing.T) {
	admin, app, role := asRole(t)
	if err := pgstore.Migrate(t.Context(), admin); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Exec(t.Context(), `create table orders (seq bigint); grant all on all tables in schema public to `+role+`; revoke all on orders from `+role); err != nil {
		t.Fatal(err)
	}
	job, _ := outages{records: 1, handle: func(ctx context.Context, tx pgx.Tx, b *stream.Batch) error {
		_, err := tx.Exec(ctx, `insert into orders values (1)`)
		return err
	}, config: func(c *stream.WorkerConfig) { c.NoProgress = 500 * time.Millisecond }}.run(t, app)
	if job.State != stream.Failed || job.Reason != stream.ReasonNoProgress || !strings.Contains(job.LastError, string(stream.ReasonPrivilege)) || job.RetryState.NoProgress < 500*time.Millisecond {
		t.Errorf("the job is %s %s %+v: %s", job.State, job.Reason, job.RetryState, job.LastError)
	}
}

// A version that could not be read is not named: the error said "from version 0" of tables that were there.
func TestMigrateNamesNoVersionThatItCouldNotRead(t *testing.T) {
	admin, app, role := asRole(t)
	if err := pgstore.Migrate(t.Context(), admin); err != nil {
		t.Fatal(err)
	}
	err := pgstore.Migrate(t.Context(), app)
	if err == nil || strings.Contains(err.Error(), "from version") || !strings.Contains(err.Error(), "read the version") || !strings.Contains(err.Error(), role) || stream.ReasonOf(err) != stream.ReasonPrivilege {
		t.Errorf("migrating without the right to read the version: %v (reason %q)", err, stream.ReasonOf(err))
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := pgstore.Migrate(ended, admin); !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "from version") {
		t.Errorf("migrating after the context has ended: %v", err)
	}
}
