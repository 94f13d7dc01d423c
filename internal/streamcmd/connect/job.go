package connect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/stream"
)

// WithJob opens the store and calls do with the job that the id, or its beginning, names. Tables are not created.
func (f *StoreFlags) WithJob(ctx context.Context, id string, do func(d *Database, job stream.Status) error) (err error) {
	d, err := f.Open(ctx, false)
	if err != nil {
		return err
	}
	defer d.Closing(&err)
	job, err := d.FindJob(ctx, id)
	if err != nil {
		return err
	}
	return do(d, job)
}

// FindJob takes an id, or its beginning if that is enough to tell jobs apart.
func (d *Database) FindJob(ctx context.Context, id string) (stream.Status, error) {
	status, err := d.Get(ctx, id)
	if err == nil || !errors.Is(err, stream.ErrNotFound) || id == "" {
		return status, err
	}
	found, listErr := d.List(ctx, stream.Filter{Limit: 10000})
	if listErr != nil {
		return status, listErr
	}
	found = slices.DeleteFunc(found, func(s stream.Status) bool { return !strings.HasPrefix(s.ID, id) })
	switch len(found) {
	case 0:
		return status, fmt.Errorf("%w; `levada stream list` shows what there is", err)
	case 1:
		if len(id) >= leastPrefix {
			return found[0], nil
		}
		return status, commandline.Usagef("%q is too short for a job's id: write at least %d characters of it; one job begins with it, %s (%s, %s)", id, leastPrefix, found[0].ID, found[0].Stream, found[0].State)
	}
	return status, ambiguous(id, found)
}

// ambiguous is the error for the beginning of several ids.
func ambiguous(id string, found []stream.Status) error {
	var some []string
	for i := range found[:min(len(found), 5)] {
		some = append(some, fmt.Sprintf("%s (%s, %s)", found[i].ID, found[i].Stream, found[i].State))
	}
	if len(found) > len(some) {
		some = append(some, "...")
	}
	return commandline.Usagef("%d jobs begin with %q, write more of the id: %s", len(found), id, strings.Join(some, ", "))
}

// leastPrefix is how many characters of an id name a job, so that a slip does not change another one.
const leastPrefix = 4
