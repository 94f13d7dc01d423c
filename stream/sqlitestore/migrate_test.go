package sqlitestore

import (
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/levada-io/levada/stream"
)

// A program that only reads created tables in whatever file it was pointed at, and changed its journal's mode.
func TestWithoutMigrateLeavesTheFileAsItIs(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(t.Context(), filepath.Join(dir, "none.db"), WithoutMigrate()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: error %v", err)
	}
	foreign := filepath.Join(dir, "foreign.db")
	db, err := sql.Open("sqlite", foreign)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), `create table theirs (n)`); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(foreign)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), foreign, WithoutMigrate()); !errors.Is(err, stream.ErrOlder) || !strings.Contains(err.Error(), "levada stream migrate") {
		t.Errorf("a file without tables: error %v, want ErrOlder with the command to run", err)
	}
	if after, err := os.ReadFile(foreign); err != nil || string(before) != string(after) {
		t.Errorf("the file was changed, error %v", err)
	}
	if err := Migrate(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), foreign, WithoutMigrate())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
