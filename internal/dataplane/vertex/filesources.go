package vertex

import (
	"context"
	"errors"
	"fmt"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/sink/filesink"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/filesource"
	"github.com/levada-io/levada/internal/dataplane/source/records"
	"github.com/levada-io/levada/internal/dataplane/source/stdinsource"
)

// file builds a source that reads a file.
func (b *builder) file(ctx context.Context, s *v1alpha1.Source, at source.Positions) (source.Reader, error) {
	f := s.File
	b.says("file " + f.Path)
	delimiter, err := records.ParseDelimiter(f.Delimiter)
	if err != nil {
		return nil, fmt.Errorf("source.file.%w", err)
	}
	return filesource.New(ctx, filesource.Config{
		Path: b.env.path(f.Path), Format: records.Format(f.Format), NoHeader: f.CSVHeader != nil && !*f.CSVHeader, Follow: f.Follow, Positions: at,
		Delimiter: delimiter, OnMalformed: records.Policy(f.OnMalformed), Logger: b.v.logger, Skipped: b.skipped,
	})
}

// stdin builds a source that reads the standard input.
func (b *builder) stdin(ctx context.Context, s *v1alpha1.Source, at source.Positions) (source.Reader, error) {
	f := s.Stdin
	b.says("standard input")
	delimiter, err := records.ParseDelimiter(f.Delimiter)
	if err != nil {
		return nil, fmt.Errorf("source.stdin.%w", err)
	}
	return stdinsource.New(ctx, stdinsource.Config{
		In: b.env.Stdin, Format: records.Format(f.Format), NoHeader: f.CSVHeader != nil && !*f.CSVHeader, Positions: at,
		Delimiter: delimiter, OnMalformed: records.Policy(f.OnMalformed), Logger: b.v.logger, Skipped: b.skipped,
	})
}

// skipped counts malformed records that the manifest says to skip.
func (b *builder) skipped(messages, bytes int) {
	b.metrics.Dropped("", messages, bytes, "malformed")
}

// headerDropped counts headers that are not UTF-8, and logs the first of each name.
func (b *builder) headerDropped() func(name string) {
	// A source reads in one goroutine, so this needs no lock. It is bounded: a sender chooses the names.
	logged := map[string]bool{}
	return func(name string) {
		b.metrics.HeaderDropped()
		if !logged[name] && len(logged) < 100 {
			logged[name] = true
			b.v.logger.Warn("header is not UTF-8, dropped", "header", name)
		}
	}
}

// rotation is that of the manifest: bytes, files that are kept, and time; 0 for no limit.
func rotation(r *v1alpha1.FileRotation) (out filesink.Rotation) {
	if r == nil {
		return out
	}
	if r.Size != nil {
		out.Size = r.Size.Value()
	}
	if r.Keep != nil {
		out.Keep = int(*r.Keep)
	}
	out.Every = duration(r.Every)
	return out
}

// Reopen has file sinks look at their files now: where one was renamed, a new one is begun.
func (v *Vertex) Reopen(ctx context.Context) error {
	var errs []error
	for _, w := range v.files {
		errs = append(errs, w.Reopen(ctx))
	}
	return errors.Join(errs...)
}
