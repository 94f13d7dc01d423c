package standalone

import (
	"context"
	"errors"
)

// Reopen has file sinks look at their files now, as they do before each write: where one was renamed, a new one is begun.
func (r *Running) Reopen(ctx context.Context) error {
	var errs []error
	for _, p := range r.Pipelines {
		errs = append(errs, p.Reopen(ctx))
	}
	return errors.Join(errs...)
}
