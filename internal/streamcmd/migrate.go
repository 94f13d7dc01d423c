package streamcmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamcmd/connect"
	"github.com/levada-io/levada/stream/pgstore"
	"github.com/levada-io/levada/stream/sqlitestore"
)

// tableVersion is what `migrate` prints of a set of tables.
type tableVersion struct {
	Tables string `json:"tables"`
	// Version is that in the database, 0 if there are none; Needed is that of this program.
	Version int64 `json:"version"`
	Needed  int64 `json:"needed"`
}

type migrateFlags struct {
	store           connect.StoreFlags
	out             outputFlag
	check, sinkOnly bool
	timeout         time.Duration
}

func newMigrateCommand() *cobra.Command {
	var f migrateFlags
	cmd := &cobra.Command{
		Use: "migrate", Short: "Create the tables of a job store, or bring them up to date", Args: cobra.NoArgs,
		Long: `Create the tables of a job store and its sink, or bring them up to date with this program. Running it again changes nothing.

"submit" and "work" do the same when they start. Commands that look at jobs, or change one, never create or change tables. In your own program
pgstore.Open and sqlitestore.Open migrate too, unless you give them WithoutMigrate: then run this command, or pgstore.Migrate, as a step of the
deployment, with a database user that may create tables.

A sink in another database than the job store (pgstore.NewSink, sqlitestore.NewSink) has tables of its own there: name that database with --store, and
say --sink-only.

Update the tables first, and the workers afterwards. A worker that is older than the tables refuses to start; one that runs goes on.`,
		Example: `  levada stream migrate --store postgres://admin@localhost/shop
  levada stream migrate --store postgres://localhost/shop --check
  levada stream migrate --store postgres://localhost/warehouse --sink-only`,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	f.store.Register(cmd.Flags())
	f.out.register(cmd.Flags())
	cmd.Flags().BoolVar(&f.sinkOnly, "sink-only", false, "only the tables of a sink, in a database that is not the job store's")
	cmd.Flags().BoolVar(&f.check, "check", false, "change nothing; exit code 1 if the tables are missing, older or newer")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 5*time.Minute, "how long it may take, the wait for another that migrates included")
	return cmd
}

func (f *migrateFlags) run(cmd *cobra.Command) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
	defer cancel()
	kind, name, err := f.store.Place()
	if err != nil {
		return err
	}
	var all []tableVersion
	switch {
	case f.sinkOnly:
		return migrateSink(ctx, cmd, sinkFlag(f.store), f.check, f.out)
	case kind == connect.Postgres:
		all, err = f.migratePostgres(ctx, name)
	default:
		all, err = f.migrateSQLite(ctx, name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no job store at %s: run this command without --check to create it", name)
	}
	if err != nil {
		return err
	}
	return printVersions(cmd, f.out, all, "levada stream migrate")
}

func (f *migrateFlags) migratePostgres(ctx context.Context, url string) (all []tableVersion, err error) {
	pool, err := pgstore.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("--store: %w", err)
	}
	defer pool.Close()
	options := f.store.PostgresOptions()
	if !f.check {
		if err := pgstore.Migrate(ctx, pool, options...); err != nil {
			return nil, err
		}
	}
	found, err := pgstore.Versions(ctx, pool, options...)
	for _, v := range found {
		all = append(all, tableVersion{v.Tables, v.Stored, v.Known})
	}
	return all, err
}

func (f *migrateFlags) migrateSQLite(ctx context.Context, path string) (all []tableVersion, err error) {
	if !f.check {
		if err := sqlitestore.Migrate(ctx, path); err != nil {
			return nil, err
		}
	}
	found, err := sqlitestore.Versions(ctx, path)
	for _, v := range found {
		all = append(all, tableVersion{v.Tables, v.Stored, v.Known})
	}
	return all, err
}

// printVersions prints the versions of tables, and returns an error if they are not those of this program. command brings them up to date.
func printVersions(cmd *cobra.Command, out outputFlag, all []tableVersion, command string) error {
	var behind []string
	for _, v := range all {
		var err error
		if out.json() {
			err = commandline.WriteJSON(cmd.OutOrStdout(), false, v)
		} else {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: version %d of %d\n", v.Tables, v.Version, v.Needed)
		}
		if err != nil {
			return err
		}
		if v.Version != v.Needed {
			behind = append(behind, v.Tables)
		}
	}
	if len(behind) > 0 {
		return fmt.Errorf("the tables of %s are not those of this program: run `%s`, or update the program if they are newer", strings.Join(behind, " and "), command)
	}
	return nil
}
