// Package catalogue lists the functions, sources and sinks that Levada brings along: the named ones of a manifest (udf: {builtin: {name: cat}}), and
// equivalents of Numaflow's sample images, so that its example manifests run where there is no container engine. What they do is in
// function/builtin, source/builtinsource and sink/builtinsink.
package catalogue

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/levada-io/levada/internal/dataplane/function/builtin"
	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/sink/builtinsink"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/source/builtinsource"
)

// ErrUnknown means that there is no builtin for the image or of the name.
var ErrUnknown = errors.New("no builtin")

// ErrUnsupported means that the sample is known, and is of a kind that this version does not have.
var ErrUnsupported = errors.New("not in this version")

// Options say what a program runs for. The zero value of each field is allowed.
type Options struct {
	// Args and Env are those of the container. The expression samples take another expression as the first of Args.
	Args []string
	Env  map[string]string
	// Vertex is the name of the vertex, for logs and where a sample wants a name.
	Vertex string
	// Logger gets what goes wrong. Default: nothing is logged.
	Logger *slog.Logger
	// Stdout gets what the samples print, whole lines, one Write for each block of messages. Default: io.Discard. It has to be
	// safe for concurrent use if other programs write to it.
	Stdout io.Writer
	// Positions remembers how far a source is. Default: it begins at 0 with each process, under the same positions.
	Positions source.Positions
}

func (o Options) function() builtin.Options {
	return builtin.Options{Env: o.Env, Vertex: o.Vertex, Logger: o.Logger, Stdout: o.Stdout}
}

func (o Options) source() builtinsource.Options {
	return builtinsource.Options{Vertex: o.Vertex, Partition: o.Env["NUMAFLOW_REPLICA"], Positions: o.Positions}
}

func (o Options) sink() builtinsink.Options {
	return builtinsink.Options{Env: o.Env, Vertex: o.Vertex, Logger: o.Logger, Stdout: o.Stdout}
}

// Kind is what a program is in a vertex.
type Kind string

// The kinds.
const (
	Map         Kind = "map"
	Transformer Kind = "transformer"
	Source      Kind = "source"
	Sink        Kind = "sink"
)

// Program is a builtin, ready to be used. Exactly one of Map, Source and Sink is set.
type Program struct {
	Name, Does string
	Kind       Kind
	Map        builtin.Map // of a map or a transformer
	Source     source.Reader
	Sink       sink.Writer
}

// ForImage returns the program that stands in for a sample image of Numaflow, such as quay.io/numaio/numaflow-go/map-cat:stable. Registry, owner and tag
// do not matter; the folder does (numaflow-go, numaflow-python and so on), because an image of somebody else that has the name of a
// sample is another program.
func ForImage(image string, opt Options) (*Program, error) {
	family, name := split(image)
	if kind := unsupported[name]; kind != "" && ours(family) {
		return nil, fmt.Errorf("%s: it is a sample of a %s: %w", name, kind, ErrUnsupported)
	}
	s, ok := byImage[name]
	switch {
	case !ok:
		return nil, fmt.Errorf("%w stands in for the image %s%s", ErrUnknown, image, builtin.Near(name, byImage))
	case !ours(family):
		return nil, fmt.Errorf("%w stands in for the image %s: it has the name of Numaflow's sample, but does not lie in a folder such as numaflow-go; if it does the same, write builtin: {name: %s}", ErrUnknown, image, s.of.name)
	}
	given := arguments{kwargs: s.kwargs}
	if len(s.of.takes) > 0 {
		given.args = opt.Args
	}
	return s.of.program(given, opt)
}

// Named returns the builtin of that name: one of List, or a sample's name. Arguments are by name or, in the order of List, by position.
func Named(name string, args []string, kwargs map[string]string, opt Options) (*Program, error) {
	if kind := unsupported[name]; kind != "" {
		return nil, fmt.Errorf("%s: it is a sample of a %s: %w", name, kind, ErrUnsupported)
	}
	if e, ok := byName[name]; ok {
		return e.program(arguments{args, kwargs}, opt)
	}
	s, ok := byImage[name]
	if !ok {
		return nil, fmt.Errorf("%w is called %q%s", ErrUnknown, name, builtin.Near(name, byName))
	}
	if len(kwargs) == 0 {
		kwargs = s.kwargs
	}
	return s.of.program(arguments{args, kwargs}, opt)
}

// Description of a builtin, for people.
type Description struct {
	Name string `json:"name"`
	Kind Kind   `json:"kind"`
	Does string `json:"description"`
	// Takes are the names of its arguments, in their order.
	Takes []string `json:"arguments,omitempty"`
	// Images are the samples it stands in for: numaflow-go/map-cat.
	Images []string `json:"images,omitempty"`
}

// List describes all builtins, by kind in the order of a pipeline and then by name.
func List() []Description {
	var list []Description
	for i := range catalogue {
		e := &catalogue[i]
		d := Description{Name: e.name, Kind: e.kind, Does: e.does, Takes: e.takes}
		for _, s := range e.samples {
			for _, language := range strings.Fields(s.languages) {
				d.Images = append(d.Images, "numaflow-"+language+"/"+s.name)
			}
		}
		list = append(list, d)
	}
	order := []Kind{Source, Transformer, Map, Sink}
	slices.SortFunc(list, func(a, b Description) int {
		return cmp.Or(cmp.Compare(slices.Index(order, a.Kind), slices.Index(order, b.Kind)), cmp.Compare(a.Name, b.Name))
	})
	return list
}

// entry is one builtin.
type entry struct {
	name  string
	kind  Kind
	does  string
	takes []string // names of arguments; the first is required
	// make sets Map, Source or Sink.
	make func(p *Program, given map[string]string, opt Options) error
	// samples are the images it stands in for.
	samples []sample
}

// each, whole, mapOf, sourceOf and sinkOf make programs of the kinds.

func each(f builtin.One) func(*Program, map[string]string, Options) error {
	return mapOf(func(map[string]string, builtin.Options) (builtin.Map, error) { return builtin.Each(f), nil })
}

func whole(f builtin.Map) func(*Program, map[string]string, Options) error {
	return mapOf(func(map[string]string, builtin.Options) (builtin.Map, error) { return f, nil })
}

func mapOf(create func(map[string]string, builtin.Options) (builtin.Map, error)) func(*Program, map[string]string, Options) error {
	return func(p *Program, given map[string]string, opt Options) (err error) {
		p.Map, err = create(given, opt.function())
		return err
	}
}

func sourceOf(create func(builtinsource.Options) source.Reader) func(*Program, map[string]string, Options) error {
	return func(p *Program, _ map[string]string, opt Options) error {
		p.Source = create(opt.source())
		return nil
	}
}

func sinkOf(create func(builtinsink.Options) (sink.Writer, error)) func(*Program, map[string]string, Options) error {
	return func(p *Program, _ map[string]string, opt Options) (err error) {
		p.Sink, err = create(opt.sink())
		return err
	}
}

// sample is an image's name, the languages there are of it, and what is built into it.
type sample struct {
	name, languages string
	kwargs          map[string]string
	of              *entry
}

// arguments as they were written.
type arguments struct {
	args   []string
	kwargs map[string]string
}

// program makes the program with what it was given.
func (e *entry) program(given arguments, opt Options) (*Program, error) {
	named := map[string]string{}
	for name, value := range given.kwargs {
		if !slices.Contains(e.takes, name) {
			return nil, fmt.Errorf("builtin %s: it has no argument %q; %s", e.name, name, e.usage())
		}
		named[name] = value
	}
	if len(given.args) > len(e.takes) {
		return nil, fmt.Errorf("builtin %s: %d arguments are too many; %s", e.name, len(given.args), e.usage())
	}
	for i, value := range given.args {
		named[e.takes[i]] = value
	}
	if len(e.takes) > 0 && strings.TrimSpace(named[e.takes[0]]) == "" {
		return nil, fmt.Errorf("builtin %s: the argument %q is missing; %s", e.name, e.takes[0], e.usage())
	}
	p := &Program{Name: e.name, Does: e.does, Kind: e.kind}
	opt.Vertex = cmp.Or(opt.Vertex, "builtin")
	if err := e.make(p, named, opt); err != nil {
		return nil, fmt.Errorf("builtin %s: %w", e.name, err)
	}
	return p, nil
}

func (e *entry) usage() string {
	if len(e.takes) == 0 {
		return "it takes none"
	}
	return "it takes " + strings.Join(e.takes, ", ")
}

var byName, byImage = index()

func index() (map[string]*entry, map[string]*sample) {
	names, images := map[string]*entry{}, map[string]*sample{}
	for i := range catalogue {
		e := &catalogue[i]
		names[e.name] = e
		for j := range e.samples {
			s := &e.samples[j]
			s.of = e
			images[s.name] = s
		}
	}
	return names, images
}

// split takes the folder and the name out of an image reference.
func split(image string) (family, name string) {
	image, _, _ = strings.Cut(image, "@")
	path := strings.Split(image, "/")
	name, _, _ = strings.Cut(path[len(path)-1], ":")
	if len(path) > 1 {
		family = path[len(path)-2]
	}
	return family, name
}

// ours says that a folder is of Numaflow's samples.
func ours(family string) bool { return strings.HasPrefix(family, "numaflow-") }
