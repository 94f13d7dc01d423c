package pipelinecmd

import (
	"encoding/json"
	"io"
	"path/filepath"

	"github.com/levada-io/levada/internal/manifest"
)

// SARIF 2.1.0, the part that code scanning reads.
type (
	sarifLog struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool    sarifTool     `json:"tool"`
		Results []sarifResult `json:"results"`
		// ColumnKind says that columns count characters.
		ColumnKind string `json:"columnKind"`
	}
	sarifTool struct {
		Driver sarifDriver `json:"driver"`
	}
	sarifDriver struct {
		Name           string      `json:"name"`
		InformationURI string      `json:"informationUri"`
		Rules          []sarifRule `json:"rules"`
	}
	sarifRule struct {
		ID               string       `json:"id"`
		ShortDescription sarifText    `json:"shortDescription"`
		FullDescription  sarifText    `json:"fullDescription"`
		Configuration    sarifDefault `json:"defaultConfiguration"`
	}
	sarifDefault struct {
		Level string `json:"level"`
	}
	sarifText struct {
		Text string `json:"text"`
	}
	sarifResult struct {
		RuleID    string          `json:"ruleId"`
		Level     string          `json:"level"`
		Message   sarifText       `json:"message"`
		Locations []sarifLocation `json:"locations,omitempty"`
	}
	sarifLocation struct {
		Physical sarifPhysical  `json:"physicalLocation"`
		Logical  []sarifLogical `json:"logicalLocations,omitempty"`
	}
	sarifPhysical struct {
		Artifact sarifArtifact `json:"artifactLocation"`
		Region   *sarifRegion  `json:"region,omitempty"`
	}
	sarifArtifact struct {
		URI string `json:"uri"`
	}
	sarifRegion struct {
		StartLine   int `json:"startLine"`
		StartColumn int `json:"startColumn,omitempty"`
	}
	sarifLogical struct {
		FullyQualifiedName string `json:"fullyQualifiedName"`
	}
)

func writeSARIF(w io.Writer, page problemPage) error {
	run := sarifRun{
		Tool:       sarifTool{sarifDriver{Name: "levada", InformationURI: "https://github.com/levada-io/levada"}},
		Results:    []sarifResult{},
		ColumnKind: "unicodeCodePoints",
	}
	seen := map[manifest.Code]bool{}
	for _, p := range page.problems {
		seen[p.Code] = true
		run.Results = append(run.Results, sarifOf(p))
	}
	run.Tool.Driver.Rules = []sarifRule{}
	for _, e := range manifest.Catalogue() {
		if seen[e.Code] {
			run.Tool.Driver.Rules = append(run.Tool.Driver.Rules, sarifRule{
				ID: string(e.Code), ShortDescription: sarifText{e.Title}, FullDescription: sarifText{e.Text},
				Configuration: sarifDefault{string(e.Severity)}, // the names of levels are the same
			})
		}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(sarifLog{
		Schema: "https://json.schemastore.org/sarif-2.1.0.json", Version: "2.1.0", Runs: []sarifRun{run},
	})
}

func sarifOf(p manifest.Problem) sarifResult {
	result := sarifResult{RuleID: string(p.Code), Level: string(p.Severity), Message: sarifText{details(p)}}
	if p.File == "" {
		return result
	}
	location := sarifLocation{Physical: sarifPhysical{Artifact: sarifArtifact{URI: filepath.ToSlash(p.File)}}}
	if p.Line > 0 {
		location.Physical.Region = &sarifRegion{StartLine: p.Line, StartColumn: p.Column}
	}
	if p.Path != "" {
		location.Logical = []sarifLogical{{p.Path}}
	}
	result.Locations = []sarifLocation{location}
	return result
}
