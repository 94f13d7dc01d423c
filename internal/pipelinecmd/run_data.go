package pipelinecmd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/manifest"
)

// manifestRecord is kept in a data directory as manifests.json. The default data directory is named after the first manifest file. So a file that is renamed, or
// files given in another order, would start the same pipelines with a new data directory: all input would be read and delivered again. The record shows whose state
// the other data directories hold.
type manifestRecord struct {
	// Files are absolute paths of the manifests. Standard input is "-".
	Files []string `json:"files"`
	// Pipelines are named as in "Pipeline eu-west/shop".
	Pipelines []string `json:"pipelines"`
}

const manifestRecordFile = "manifests.json"

// newManifestRecord describes a run with these arguments.
func newManifestRecord(args []string, objects []manifest.Object) (manifestRecord, error) {
	var r manifestRecord
	for _, file := range args {
		if file != "-" {
			absolute, err := filepath.Abs(file)
			if err != nil {
				return r, err
			}
			file = absolute
		}
		r.Files = append(r.Files, file)
	}
	for _, o := range objects {
		switch m := o.Manifest.(type) {
		case *v1alpha1.Pipeline:
			r.Pipelines = append(r.Pipelines, "Pipeline "+m.Namespace+"/"+m.Name)
		case *v1alpha1.MonoVertex:
			r.Pipelines = append(r.Pipelines, "MonoVertex "+m.Namespace+"/"+m.Name)
		}
	}
	return r, nil
}

// checkDefaultDir refuses to start over in a default data directory when another one beside it holds the state of the same pipeline, and the manifest that it was
// written for is gone or is one of this run's. A copy of a manifest beside the original may be what the user wants: that is logged only.
func (r manifestRecord) checkDefaultDir(dataDir string, log *slog.Logger) error {
	if _, err := os.Stat(dataDir); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	others, err := filepath.Glob(filepath.Join(filepath.Dir(dataDir), "*", manifestRecordFile))
	if err != nil {
		return err
	}
	for _, file := range others {
		other, err := readManifestRecord(file)
		if err != nil { // it may be another pipeline's, which is no reason not to run this one
			log.Warn("record of manifests cannot be read, not known whether that directory holds the same pipeline", "event.action", "data-directory", "file", file,
				"error.message", err.Error())
			continue
		}
		if err := r.checkBeside(other, filepath.Dir(file), dataDir, log); err != nil {
			return err
		}
	}
	return nil
}

func readManifestRecord(file string) (r manifestRecord, err error) {
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	return r, err
}

// checkBeside compares this run with the record of a directory beside its own.
func (r manifestRecord) checkBeside(other manifestRecord, dir, dataDir string, log *slog.Logger) error {
	same := slices.IndexFunc(r.Pipelines, func(p string) bool { return slices.Contains(other.Pipelines, p) })
	if same < 0 {
		return nil
	}
	pipeline, files := r.Pipelines[same], strings.Join(other.Files, " ")
	shared := slices.ContainsFunc(r.Files, func(f string) bool { return slices.Contains(other.Files, f) })
	switch {
	case shared:
		return fmt.Errorf("%s has its state in %s, which was named after the first file of another command line (%s): give --data %s to go on with it, or --data %s to start over with all input",
			pipeline, dir, files, dir, dataDir)
	case !slices.ContainsFunc(other.Files, exists):
		return fmt.Errorf("%s has its state in %s, which was named after %s. That file is gone: if you renamed it, give --data %s to go on with it, or --data %s to start over with all input",
			pipeline, dir, files, dir, dataDir)
	}
	log.Warn("another data directory holds the same pipeline; this run does not go on with it, and reads all input", "event.action", "data-directory", "pipeline", pipeline,
		"directory", dataDir, "other", dir, "manifest", files)
	return nil
}

// save writes the record into the data directory, which it creates.
func (r manifestRecord) save(dataDir string) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dataDir, manifestRecordFile), append(text, '\n'), 0o600)
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return file == "-" || err == nil
}
