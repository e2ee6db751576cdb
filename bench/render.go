package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// render reads a Report from a JSON file and writes compare.md beside what else is made of it into dir.
func render(path, dir string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var r Report
	if err := json.Unmarshal(text, &r); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	var md bytes.Buffer
	r.table(&md)
	return os.WriteFile(filepath.Join(dir, "compare.md"), md.Bytes(), 0o644)
}
